"""One page about a run for people, made from its record and its logged curves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from cap.base.files import atomic_file, read_json
from cap.base.markdown import table
from cap.runs.asking import asked
from cap.runs.folder import CURVES
from cap.runs.history import read_history
from cap.runs.reading import at

_NONE = "\N{EN DASH}"
_MAX_LEVELS = 12
_SCORE_PICTURE, _LAYER_PICTURE, _LOSS_PICTURE = "score_and_sparsity.png", "layer_sparsity.png", "losses.png"
_KEPT_PICTURE = "kept_models.png"
_CAPTIONS = {
    _SCORE_PICTURE: "The student's score on the validation rows (left axis) and the fraction of prunable weights that "
    "were zero at the time (right axis), over optimizer steps. Teacher, majority class and saved model are scored on "
    "all validation rows.",
    _KEPT_PICTURE: "Scores of the models that were kept, over their sparsity.",
    _LAYER_PICTURE: "Sparsity of every prunable matrix of the saved model, by encoder layer.",
    _LOSS_PICTURE: "Loss terms over optimizer steps, each on its own scale; in nats, or squared error where the task "
    "predicts a number.",
}


def write_report(run_dir: Path, record: dict[str, Any]) -> Path:
    """Write ``report.md`` and its pictures into a run's folder.

    Args:
        run_dir: The run's folder; its ``logs/metrics.csv`` gives the curves.
        record: What ``record.json`` holds, see ``cap.runs.record``; what a run does not know may be missing.

    Returns:
        The page that was written.
    """
    _draw_pictures(run_dir, record)
    sections = [
        _heading(record),
        _summary(record),
        _kept(record),
        _levels(record),
        _pictures(run_dir),
        _loading(run_dir, record),
        _surroundings(record),
    ]
    report = run_dir / "report.md"
    with atomic_file(report) as temporary:
        temporary.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    return report


def summary_table(record: dict[str, Any], folder: str) -> Table:
    """Build the few numbers that end a run in the terminal.

    Args:
        record: What ``record.json`` holds.
        folder: Where the run's files are.

    Returns:
        A table of one row; a dash stands for what has no value, and for a retention that says nothing because the
        teacher does not beat the majority class.
    """
    metric = _text(at(record, "metric"))
    teacher, pruned, majority = (at(record, "scores", who, metric) for who in ("teacher", "pruned", "majority"))
    is_idle = teacher is not None and majority is not None and teacher <= majority
    caption = f"{metric}; the teacher does not beat the majority class: nothing to retain" if is_idle else metric
    names = ("teacher", "pruned", "majority", "retention", "above majority")
    table = Table(*names, "sparsity reached (asked)", "minutes", "folder", caption=caption)
    table.columns[-1].overflow = "fold"
    cells = (
        *(_number(score, ".4f") for score in (teacher, pruned, majority)),
        _number(None if is_idle else at(record, "retention"), ".3f"),
        _number(at(record, "retention_above_majority"), ".3f"),
        f"{_number(at(record, 'sparsity', 'prunable'), '.4f')} ({_number(at(record, 'sparsity', 'asked'), 'g')})",
        _minutes(record, "total"),
        folder,
    )
    # Text and not str: square brackets in a folder's name are no markup.
    table.add_row(*(Text(cell) for cell in cells))
    return table


def _draw_pictures(run_dir: Path, record: dict[str, Any]) -> None:
    # Importing matplotlib takes a second. The table of a finished run needs no picture.
    from cap.runs.kept_picture import plot_kept
    from cap.runs.pictures import plot_layer_sparsity, plot_losses, plot_score_and_sparsity

    folder, history, metric = run_dir / "pictures", read_history(run_dir / CURVES), _text(at(record, "metric"))
    pruned = at(record, "scores", "pruned", metric)
    drawn = (
        plot_score_and_sparsity(
            history,
            metric=metric,
            teacher=at(record, "scores", "teacher", metric),
            majority=at(record, "scores", "majority", metric),
            path=folder / _SCORE_PICTURE,
            share=min((level.get("share", 1.0) for level in record.get("levels") or []), default=1.0),
            final=None if pruned is None else (record["steps"], pruned),
        ),
        plot_layer_sparsity(
            at(record, "matrices") or {}, folder / _LAYER_PICTURE, kinds=at(record, "matrix_kinds") or {}
        ),
        plot_losses(history, folder / _LOSS_PICTURE),
        plot_kept(
            record.get("kept") or [],
            metric=metric,
            teacher=at(record, "scores", "teacher", metric),
            majority=at(record, "scores", "majority", metric),
            path=folder / _KEPT_PICTURE,
        ),
    )
    for name in set(_CAPTIONS) - {path.name for path in drawn if path is not None}:
        # A picture of an earlier attempt would pass for one of this run.
        (folder / name).unlink(missing_ok=True)


def _heading(record: dict[str, Any]) -> str:
    lines = [f"# Run {_text(at(record, 'config_hash'))}: {_text(at(record, 'status'))}", ""]
    lines += [f"> **Error:** {_one_line(record['error'])}", ""] if record.get("error") else []
    for warning in record.get("warnings") or ():
        lines += [f"> **Warning:** {_one_line(warning)}", ""]
    lines += ["```", _text(at(record, "command")), "```"]
    return "\n".join(lines)


def _summary(record: dict[str, Any]) -> str:
    metric = _text(at(record, "metric"))
    scores = {who: at(record, "scores", who) or {} for who in ("teacher", "pruned", "majority")}
    names = list(dict.fromkeys([metric, *(name for known in scores.values() for name in known)]))
    scored = table(
        ["score", "teacher", "pruned", "knows nothing"],
        ([name, *(_number(known.get(name), ".4f") for known in scores.values())] for name in names),
    )
    told = table(["", "value", "meaning"], [*_quality_rows(record, metric), *_cost_rows(record)])
    return f"## Summary\n\n{scored}\n\n{told}"


def _quality_rows(record: dict[str, Any], metric: str) -> list[list[str]]:
    rows = [
        [name.replace("_", " "), _number(at(record, name), ".3f"), _one_line(at(record, f"{name}_reason") or formula)]
        for name, formula in (
            ("retention", f"pruned / teacher, {metric}"),
            ("retention_above_majority", "(pruned - majority) / (teacher - majority)"),
        )
    ]
    rows.append(["sparsity asked", _number(at(record, "sparsity", "asked"), "g"), "fraction of prunable weights"])
    denominators = {
        "prunable": "of the prunable weights",
        "encoder": "of all encoder weights, biases and LayerNorm counted as kept",
        "model": "of the whole model",
    }
    for name, meaning in denominators.items():
        rows.append([f"sparsity reached, {name}", _number(at(record, "sparsity", name), ".4f"), f"fraction {meaning}"])
    return [*rows, *_unit_rows(record)]


def _unit_rows(record: dict[str, Any]) -> list[list[str]]:
    rows = []
    for kind, name in (("heads", "attention heads"), ("ffn", "FFN units")):
        layers: Mapping[str, Sequence[int]] = at(record, "units", kind) or {}
        if layers:
            n_pruned, n = (sum(counts) for counts in zip(*layers.values(), strict=True))
            kept = ", ".join(f"{n_units - n_gone:,}" for n_gone, n_units in layers.values())
            rows.append([f"{name} without effect", f"{n_pruned:,} of {n:,}", f"left, by layer: {kept}"])
    return rows


def _cost_rows(record: dict[str, Any]) -> list[list[str]]:
    n_rows = at(record, "data", "n_rows") or {}
    phases = ", ".join(
        f"{phase} {_minutes(record, phase)}" for phase in record.get("seconds") or {} if phase != "total"
    )
    host, device = at(record, "peak_memory_gb", "host"), at(record, "peak_memory_gb", "device")
    return [
        ["rows", ", ".join(f"{_number(n, ',')} {split}" for split, n in n_rows.items()) or _NONE, _source(record)],
        ["optimizer steps", _number(at(record, "steps"), ","), f"seed {_text(at(record, 'seed'))}"],
        ["minutes", _minutes(record, "total"), phases or "all phases"],
        ["seconds per step", _number(at(record, "seconds_per_step"), ".3g"), "median"],
        ["peak memory, host", _number(host, ".2f"), "GB of resident memory"],
        ["peak memory, device", _number(device, ".2f"), "GB allocated on the accelerator"],
    ]


def _kept(record: dict[str, Any]) -> str:
    kept: Sequence[Mapping[str, Any]] = record.get("kept") or []
    if not kept:
        return ""
    names = list(dict.fromkeys(name for line in kept for name in line["scores"]))
    rows = (
        [
            _number(line["step"], ","),
            _number(line["sparsity"]["prunable"], ".4f"),
            *(_number(line["scores"].get(name), ".4f") for name in names),
            f"`{line['folder']}`",
        ]
        for line in kept
    )
    return "\n".join(["## Kept models", "", table(["step", "sparsity", *names, "folder"], rows)])


def _levels(record: dict[str, Any]) -> str:
    levels: Sequence[Mapping[str, Any]] = record.get("levels") or []
    if not levels:
        return ""
    # Evenly spaced, first and last included.
    shown = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), _MAX_LEVELS)).round().astype(int))
    names = list(dict.fromkeys(name for level in levels for name in level.get("scores") or {}))
    # Where not all scores are of the same kind, say which each is.
    kinds = {"share": "share of rows", "precision": "precision"}
    mixed = {key: title for key, title in kinds.items() if len({level.get(key) for level in levels}) > 1}
    rows = (
        [
            _number(level.get("step"), ","),
            _number(level.get("target"), ".4f"),
            _number(level.get("sparsity"), ".4f"),
            *(_number((level.get("scores") or {}).get(name), ".4f") for name in names),
            *(_number(level.get(key), ".3f") if key == "share" else _text(level.get(key)) for key in mixed),
        ]
        for level in (levels[int(index)] for index in shown)
    )
    note = [f"{len(shown)} of {len(levels)} levels.", ""] if len(shown) < len(levels) else []
    return "\n".join(
        ["## Levels", "", *note, table(["step", "target sparsity", "sparsity", *names, *mixed.values()], rows)]
    )


def _pictures(run_dir: Path) -> str:
    files = {path.name for path in (run_dir / "pictures").glob("*.png")}
    ordered = [name for name in _CAPTIONS if name in files] + sorted(files - set(_CAPTIONS))
    lines = []
    for name in ordered:
        title = Path(name).stem.replace("_", " ")
        lines += ["", f"![{title}](pictures/{name.replace(' ', '%20')})", "", f"*{_CAPTIONS.get(name, title)}*"]
    return "\n".join(["## Pictures", *lines]) if lines else ""


def _loading(run_dir: Path, record: Mapping[str, Any]) -> str:
    config = run_dir / "model" / "config.json"
    if not config.is_file():
        return ""
    try:
        architecture = str((read_json(config).get("architectures") or [""])[0])
    except (json.JSONDecodeError, AttributeError):
        architecture = ""
    head = re.search(r"For([A-Z]\w+)$", architecture)
    if architecture.endswith("Model"):
        return """## Load the model

In this folder, with `sentence-transformers`; `transformers.AutoModel` gives the hidden states:

```python
from sentence_transformers import SentenceTransformer
vectors = SentenceTransformer("model").encode(["a text", "another one"])
```"""
    loader = f"AutoModelFor{head[1]}" if head else "AutoModelForSequenceClassification"
    lines = asked(at(record, "asks"), max_length=at(record, "config", "max_length"), of="model")
    return f"""## Load the model

In this folder, with nothing but `transformers`:

```python
from transformers import {loader}, AutoTokenizer
model = {loader}.from_pretrained("model").eval()
tokenizer = AutoTokenizer.from_pretrained("model"){lines}
```"""


def _surroundings(record: dict[str, Any]) -> str:
    rows = [[name.replace("_", " "), _text(value)] for name, value in (record.get("environment") or {}).items()]
    return "\n".join(["## Environment", "", table(["", ""], rows)]) if rows else ""


def _number(value: float | int | None, form: str) -> str:
    return _NONE if value is None else format(value, form)


def _minutes(record: dict[str, Any], phase: str) -> str:
    seconds = at(record, "seconds", phase)
    return _NONE if seconds is None else format(seconds / 60, ".1f" if seconds >= 600 else ".2f")


def _source(record: dict[str, Any]) -> str:
    source, fingerprint = at(record, "data", "source"), at(record, "data", "fingerprint")
    return f"{_text(source)}, fingerprint {_text(fingerprint)}"


def _text(value: Any) -> str:
    return _NONE if value is None else str(value)


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


__all__ = ["summary_table", "write_report"]
