"""What a study of two objectives came to: a table, a csv file and a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from cap.base.files import atomic_file
from cap.runs.style import BLUE, GREY, STYLE, WIDTH, save


def front_of(study: Study) -> list[FrozenTrial]:
    """List the trials that no other beats in both score and sparsity, the sparsest last."""
    finished = any(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False))
    return sorted(study.best_trials, key=lambda trial: trial.values[1]) if finished else []


def front_table(study: Study) -> Table:
    """Show the front: objectives first, then what was chosen."""
    front = front_of(study)
    keys = [key for key in _keys(front) if key != "sparsity"]  # as asked for; what was reached counts
    table = Table("trial", "sparsity reached", metric_of(front), title=f"{study.study_name}: the front")
    for key in keys:
        table.add_column(key.replace(".", ".\n"), overflow="fold")
    for trial in front:
        score, sparsity = trial.values
        chosen = [_shown(trial.params.get(key)) for key in keys]
        table.add_row(str(trial.number), f"{sparsity:.4f}", f"{score:.4f}", *chosen)
    return table


def write_trials(study: Study, path: Path) -> Path:
    """Write one line for each trial, also for those that failed, with the reason."""
    trials = study.get_trials(deepcopy=False)
    on_front = {trial.number for trial in front_of(study)}
    keys = _keys(trials)
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "metric", "score", "sparsity_reached", "is_on_front", *keys, "reason"])
        for trial in trials:
            score, sparsity = trial.values or ("", "")
            row = [trial.number, trial.state.name.lower(), trial.user_attrs.get("metric", ""), score, sparsity]
            row += [trial.number in on_front, *(trial.params.get(key, "") for key in keys)]
            writer.writerow([*row, trial.user_attrs.get("reason", "")])
    return path


def draw_front(study: Study, path: Path) -> Path | None:
    """Draw every trial's score over its sparsity, and a line through the front; None without a finished trial."""
    front = front_of(study)
    if not front:
        return None
    others = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.number not in {best.number for best in front}
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        ax = figure.subplots()
        ax.scatter(*_points(others), s=18, color=GREY, alpha=0.6, label="other trials", zorder=2)
        # Steps: at a sparsity between two trials, the sparser one is what was shown to be possible.
        ax.plot(*_points(front), color=BLUE, marker="o", markersize=5, drawstyle="steps-pre", label="front", zorder=3)
        for trial in front:
            score, sparsity = trial.values
            ax.annotate(
                str(trial.number), (sparsity, score), xytext=(4, 4), textcoords="offset points", fontsize=7, color=BLUE
            )
        ax.set_xlabel("sparsity reached")
        ax.set_ylabel(metric_of(front))
        ax.grid(visible=True, alpha=0.25)
        ax.legend(loc="lower left")
        return save(figure, path)


def metric_of(trials: Sequence[FrozenTrial]) -> str:
    """Name the score, as the first trial's record did."""
    return str(next((trial.user_attrs["metric"] for trial in trials if "metric" in trial.user_attrs), "score"))


def _keys(trials: Sequence[FrozenTrial]) -> list[str]:
    return list(dict.fromkeys(key for trial in trials for key in trial.params))


def _points(trials: Sequence[FrozenTrial]) -> tuple[list[float], list[float]]:
    return [trial.values[1] for trial in trials], [trial.values[0] for trial in trials]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


__all__ = ["draw_front", "front_of", "front_table", "metric_of", "write_trials"]
