"""``python -m benchmarks.results_table``: write the tables of README and docs, and the pictures of the bake-off.

The rows are those of ``python -m cap.report benchmarks/records``, with fewer columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.bake_off.cells import read_cells
from benchmarks.bake_off.pictures import plot_ablations, plot_arms, plot_sparsities
from benchmarks.bake_off.summary import (
    NOTHING,
    Arm,
    ablation_table,
    commands,
    comparisons,
    machine,
    notes,
    page_part,
    read_arms,
    summary_table,
)
from benchmarks.other_rows import other_rows_table
from benchmarks.peers import table as peers
from cap.base.files import atomic_file, read_json
from cap.reports.collect import Collection, collect, commits_of
from cap.reports.differences import Difference
from cap.reports.export_table import EXPORT_HEADER, export_rows
from cap.reports.published import published_for
from cap.reports.run import Run
from cap.reports.tables import COLUMNS, Column, cells, group_runs, markdown

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "benchmarks/README.md", "docs/long_runs.md", "docs/method.md")
RESULTS = ("<!-- results: python -m benchmarks.results_table -->", "<!-- end of results -->")
EXPORTS = ("<!-- exports: python -m benchmarks.results_table -->", "<!-- end of exports -->")
RELIABILITY = ("<!-- reliability: python -m benchmarks.results_table -->", "<!-- end of reliability -->")
COST = ("<!-- cost: python -m benchmarks.results_table -->", "<!-- end of cost -->")
BAKE_OFF = ("<!-- bake-off: python -m benchmarks.results_table -->", "<!-- end of bake-off -->")
BRIEF = ("<!-- bake-off, brief: python -m benchmarks.results_table -->", "<!-- end of bake-off, brief -->")
ABLATION = ("<!-- bake-off, ablation: python -m benchmarks.results_table -->", "<!-- end of bake-off, ablation -->")
COMMANDS = ("<!-- bake-off, commands: python -m benchmarks.results_table -->", "<!-- end of bake-off, commands -->")
PEERS = ("<!-- peers: python -m benchmarks.results_table -->", "<!-- end of peers -->")
PUBLISHED = ("<!-- published: python -m benchmarks.results_table -->", "<!-- end of published -->")
WITHOUT_TRAINING = ("<!-- without training: python -m benchmarks.results_table -->", "<!-- end of without training -->")
TEACHERS = ("<!-- teachers: python -m benchmarks.results_table -->", "<!-- end of teachers -->")
OTHER_ROWS = ("<!-- other rows: python -m benchmarks.results_table -->", "<!-- end of other rows -->")
AGAIN = ("<!-- again: python -m benchmarks.results_table -->", "<!-- end of again -->")
SEARCH = ("<!-- search: python -m benchmarks.results_table -->", "<!-- end of search -->")
# The text below the table names model and metric; sparsity is the one that was reached.
TITLES = {"reached": "sparsity"}
_TEACHER = Column("teacher", "teacher", 3)
LEFT_OUT = ("model", "asked", "metric", "best", "path_after_target", "note")


def table(folder: Path) -> str:
    """Make the table of the completed runs in a folder, one row a configuration, and say at which commits."""
    columns = [
        replace(column, title=TITLES.get(column.key, column.title)) for column in COLUMNS if column.key not in LEFT_OUT
    ]
    found, runs = collect([folder]), committed_runs(folder)
    lines = markdown([column.title for column in columns], (cells(group, columns) for group in group_runs(runs)))
    said = [*commits_of(runs)]
    said += [f"{left.path.name}: {left.reason}." for left in found.left_out if left.path.parent == folder.resolve()]
    return "\n\n".join([lines, *([" ".join(said)] if said else [])])


def export_table(folder: Path) -> str:
    """Make the table of what was exported of these runs; empty where nothing was."""
    rows = export_rows(run for group in group_runs(committed_runs(folder)) for run in group.runs)
    return markdown(EXPORT_HEADER, rows) if rows else ""


def committed_runs(folder: Path) -> list[Run]:
    """Read the completed runs in a folder; folders below hold what is kept for comparison only."""
    resolved = folder.resolve()
    return [run for run in collect([folder]).runs if run.path.parent == resolved]


def cost_table(measured: dict[str, Any], importance: dict[str, Any]) -> str:
    """Make the table of what a step, a run and an importance pass cost beside plain fine-tuning."""
    run, memory = measured["run"], measured["peak_memory_gb"]
    rows = [
        ("step, masks moved every 10 steps, s", measured["step_masks_every_10"], 2),
        ("step, masks moved every step, s", measured["step_masks_every_1"], 2),
        ("step, both with embeddings frozen, s", measured["step_beside_frozen"], 2),
        ("structured pruning: step, s", _beside(importance, "structured"), 2),
        ("structured pruning: a batch of the importance pass, s", _beside(importance, "importance"), 2),
        ("10 epochs with all encoding, s", run, 0),
        ("peak memory of those, GB", {**memory, "ratio": memory["cap"] / memory["plain"]}, 2),
    ]
    lines = [
        [name, f"{v['plain']:.{digits}f}", f"{v['cap']:.{digits}f}", f"{v['ratio']:.2f}"] for name, v, digits in rows
    ]
    return markdown(["", "plain fine-tuning", "CAP", "ratio"], lines)


def _beside(importance: dict[str, Any], name: str) -> dict[str, float]:
    seconds = importance["seconds"]
    return {"plain": seconds["plain"], "cap": seconds[name], "ratio": seconds[name] / seconds["plain"]}


def reliability_table(folder: Path) -> str:
    """Make the table of what was done to runs and what was left of them, from what the benchmarks have written."""
    rows: list[list[str]] = []
    for name, row_of in _TRIALS.items():
        path = folder / f"{name}.json"
        if path.is_file():
            rows.append([*row_of(read_json(path)), f"benchmarks.{name.partition('_2_')[0]}"])
    return markdown(["what happened", "what was left", "measured by"], rows)


def _killed(measured: dict[str, Any]) -> list[str]:
    trials = measured["trials"]
    phases = ", ".join(dict.fromkeys(trial["phase"] for trial in trials))
    found = f"same weights, scores and curves, {measured['n_equal']} of {len(trials)}"
    return [f"kill -9 at {len(trials)} random moments ({phases}), then resume=true", found]


def _killed_rank(measured: dict[str, Any]) -> list[str]:
    trials = measured["trials"]
    longest = max(trial["seconds_until_the_rest_ended"] for trial in trials)
    n_equal = f"{measured['n_equal']} of {len(trials)}"
    found = f"all processes ended within {longest:.0f} s and said why; the same bits, {n_equal}"
    return [f"kill -9 of one of two processes, {len(trials)} times, then resume=true", found]


def _two_processes(measured: dict[str, Any]) -> list[str]:
    exact, rounded = measured["64-true"], measured["32-true"]
    found = (
        f"in float64 losses within {exact['largest_difference']:.0e} and the masks of one process in "
        f"{exact['steps_with_masks_of_one_process']} steps; in float32 {rounded['first_steps_within_bound']} steps "
        f"within 1e-5, then {rounded['largest_difference']:.0e}, and its masks in "
        f"{rounded['steps_with_masks_of_one_process']}; both processes have the same masks at every step; each of "
        f"{exact['validation_rows']} validation rows scored once"
    )
    return [f"two processes against one, same global batches, dropout 0, {exact['steps']} steps", found]


def _grid(measured: dict[str, Any]) -> list[str]:
    found = (
        f"{measured['records']} complete, {measured['trained_again']} trained again, {measured['resumed']} continued, "
        f"{measured['teacher_trainings']} teacher training"
    )
    return [f"grid of 12 through joblib, killed after {measured['complete_when_killed']}, repeated", found]


def _full_disk(measured: dict[str, Any]) -> list[str]:
    code, step = measured["exit_code"], measured["last_good_step"]
    equal = "the same bits" if all(measured["equal"].values()) else "OTHER BITS"
    found = f"exit code {code} and the reason in one line, the checkpoint of step {step} whole; {equal}"
    return ["disk full while a checkpoint is written, room made, then resume=true", found]


_TRIALS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "killed": _killed,
    "killed_2_processes": _killed_rank,
    "processes": _two_processes,
    "grid_killed": _grid,
    "full_disk": _full_disk,
}


def search_table(found: dict[str, Any]) -> str:
    """Show what was tried before the recipe stood: each run's score on its way, and above the majority class."""
    rows = []
    for run in found["runs"]:
        on_the_way = ", ".join(f"{one['score']:.3f} at {one['sparsity']:.0%}" for one in run["validations"])
        last = run["validations"][-1]
        above = (last["score"] - found["majority"]) / (found["teacher"] - found["majority"])
        end = f"{above:.3f}" if run["is_finished"] else f"stopped after {last['step']:,} steps"
        rows.append([run["pruning"], run["setting"], on_the_way, end])
    return markdown(["pruning", "setting", "score at sparsity, every 200 steps", "above majority at the end"], rows)


def published_table() -> str:
    """Make the table of what others report of BERT-base at 90 and 97 %, the methods that have both first."""
    panels = [(task, sparsity) for task in ("mnli", "qqp") for sparsity in (0.9, 0.97)]
    scores: dict[str, dict[tuple[str, float], float]] = {}
    dense: dict[str, dict[tuple[str, float], float]] = {}
    for row in published_for((task, "accuracy") for task, _ in panels):
        if row.model != "BERT-base" or not row.drawn:
            continue
        if row.sparsity == 0:
            dense.setdefault(row.method, {}).update({(row.task, s): row.score for _, s in panels})
        elif (row.task, row.sparsity) in panels:
            scores.setdefault(row.method, {})[row.task, row.sparsity] = row.score
    order = sorted(scores.items(), key=lambda item: (-len(item[1]), -item[1].get(panels[0], 0.0)))
    lines = [
        [method, *(f"{100 * found[panel]:.1f}" if panel in found else "\N{EN DASH}" for panel in panels)]
        for method, found in [*dense.items(), *order]
    ]
    return markdown(["method", *(f"{task} at {sparsity:g}" for task, sparsity in panels)], lines)


def bake_off(folder: Path) -> tuple[list[Arm], Collection]:
    """Read the list and the records of the bake-off."""
    names = ("bake_off", "again")
    return read_arms(read_cells(folder / "bake_off.yaml"), *(folder / "records" / name for name in names))


def other_list(folder: Path, name: str) -> tuple[list[Arm], Collection]:
    """Read another list of cells than the bake-off's, and the records of its runs."""
    return read_arms(read_cells(folder / f"{name}.yaml"), folder / "records" / name)


def without_training(folder: Path) -> str:
    """Make the table of teachers that were pruned and not trained again, and of how far the types lie apart."""
    arms, found = other_list(folder, "without_training")
    parts = [summary_table(arms), comparisons(arms), " ".join(notes(arms, found))]
    return "\n\n".join(part for part in parts if part)


def teachers_table(folder: Path) -> str:
    """Make the table of what teachers score after other lengths and learning rates, those of the model first."""
    others, found = other_list(folder, "teachers")
    chosen = [
        arm
        for arm in other_list(folder, "without_training")[0]
        if (arm.first.pruning, arm.first.sparsity) == ("magnitude", 0.5)
    ]
    lines = [
        [arm.rows, arm.first.variant or "those of conf/model", *cells(arm.group, [_TEACHER]), str(arm.group.seeds)]
        for arm in [*chosen, *others]
        if arm.group is not None
    ]
    said = " ".join(notes(others, found))
    return markdown(["task", "length and learning rate", "teacher", "seeds"], lines) + (f"\n\n{said}" if said else "")


def again_table(folder: Path) -> str:
    """Make the table of runs of the bake-off that were made on two machines, and say how far they lie apart."""
    rows, said = [], []
    for arm in bake_off(folder)[0]:
        by_seed: dict[int | None, list[Run]] = defaultdict(list)
        for run in arm.group.runs if arm.group else ():
            by_seed[run.seed].append(run)
        twice = {seed: runs[:2] for seed, runs in by_seed.items() if seed is not None and len(runs) > 1}
        name = f"{arm.setting}, {arm.first.sparsity:g}{', with contrast' * (arm.first.contrast != 'none')}"
        for seed, runs in twice.items():
            rows.append([arm.rows, name, str(seed), *(f"{run.score:.3f}, {machine(run)}" for run in runs)])
        differences = {
            seed: second.score - first.score
            for seed, (first, second) in twice.items()
            if first.score is not None and second.score is not None
        }
        if differences:
            said.append(f"{name}, second minus first: {Difference(differences).judged}.")
    return markdown(["task", "run", "seed", "first", "second"], rows) + f"\n\n{' '.join(said)}" if rows else NOTHING


def draw(root: Path = ROOT) -> None:
    """Draw the pictures of the bake-off beside its records, as far as there are any."""
    folder = root / "benchmarks"
    arms, _ = bake_off(folder)
    plot_arms(arms, folder / "records" / "bake_off" / "arms.png")
    plot_ablations(arms, folder / "records" / "bake_off" / "ablation.png")
    plot_sparsities(
        arms, other_list(folder, "without_training")[0], folder / "records" / "without_training" / "sparsities.png"
    )


def write(root: Path = ROOT) -> None:
    """Put each table between its two markers, on every page that has them."""
    for page in PAGES:
        path = root / page
        text = path.read_text(encoding="utf-8")
        for (begin, end), lines in tables(root, page):
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n{lines}\n{end}{rest.partition(end)[2]}"
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def tables(root: Path, page: str) -> list[tuple[tuple[str, str], str]]:
    """Make every table that a page has markers for, each with its markers."""
    folder, text = root / "benchmarks", (root / page).read_text(encoding="utf-8")
    results = folder / "results"
    made = {
        RESULTS: lambda: table(folder / "records"),
        EXPORTS: lambda: export_table(folder / "records"),
        RELIABILITY: lambda: reliability_table(results),
        BAKE_OFF: lambda: page_part(*bake_off(folder)),
        BRIEF: lambda: page_part(*bake_off(folder), brief=True),
        ABLATION: lambda: ablation_table(bake_off(folder)[0]),
        COMMANDS: lambda: commands(bake_off(folder)[0]),
        PEERS: lambda: peers.page_part(results),
        PUBLISHED: published_table,
        WITHOUT_TRAINING: lambda: without_training(folder),
        TEACHERS: lambda: teachers_table(folder),
        AGAIN: lambda: again_table(folder),
        OTHER_ROWS: lambda: other_rows_table(bake_off(folder)[0], folder / "records" / "other_rows"),
        SEARCH: lambda: search_table(read_json(results / "search_97.json")),
        COST: lambda: cost_table(*(read_json(results / f"{name}_minilm.json") for name in ("step", "importance"))),
    }
    # Records are read by their whole paths, and sentences name some of them.
    here = f"{root.as_posix()}/"
    return [(markers, make().replace(here, "")) for markers, make in made.items() if markers[0] in text]


if __name__ == "__main__":
    write()
    draw()
