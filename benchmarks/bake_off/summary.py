"""What the records of the bake-off say: a table, what contrast adds, and what one change takes away."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bake_off.cells import Cell
from cap.reports.collect import Collection, collect, commits_of
from cap.reports.differences import Difference
from cap.reports.run import Run
from cap.reports.tables import NONE, Column, Group, cells, group_runs, markdown
from cap.runs.reading import at

NOTHING = "No cell has a record yet."
_AXES = ("task", "pruning", "sparsity", "contrast", "variant")
# What follows the first columns, which the list gives; digits as in a report.
_COLUMNS = (
    Column("teacher", "teacher", 3),
    Column("score", "pruned", 3),
    Column("best", "best", 3),
    Column("retention", "retention", 3),
    Column("above_majority", "above majority", 3),
    Column("path_after_target", "P", 3),
)


@dataclass(frozen=True, eq=False)
class Arm:
    """Hold the cells that differ in their seed only, and those of their runs that have a record.

    Args:
        cells: In the list, at least one.
        group: The runs, by seed; of a seed several if they were made on several machines. None if there is none.
    """

    cells: tuple[Cell, ...]
    group: Group | None

    @property
    def first(self) -> Cell:
        """The cell that speaks for what all have in common."""
        return self.cells[0]

    @property
    def label(self) -> str:
        """What was done, in the words of the list."""
        return self.first.variant or self.pruning

    @property
    def pruning(self) -> str:
        """The pruning type."""
        return self.group.first.pruning if self.group else self.first.pruning

    @property
    def setting(self) -> str:
        """The pruning type, and what was done besides."""
        is_all_there_is = self.label.startswith(self.pruning) or (self.is_control and bool(self.first.variant))
        return self.label if is_all_there_is else f"{self.pruning}, {self.label}"

    @property
    def change(self) -> str:
        """What differs from the recipe, which contrast does not where it is part of both."""
        return self.first.variant if self.first.contrast == "none" else f"{self.first.variant}, both with contrast"

    @property
    def rows(self) -> str:
        """The task, and on how many rows."""
        count = self.group.first.record["data"]["n_rows"]["train"] if self.group else None
        task = self.group.first.task if self.group else self.first.task
        return task if count is None else f"{task}, {count:,} rows"

    @property
    def n_seeds(self) -> int:
        """How many seeds have a run."""
        return len({run.seed for run in self.group.runs}) if self.group else 0

    @property
    def seeds(self) -> str:
        """How many seeds there are of those in the list, and how many runs if they are more."""
        n, runs = self.n_seeds, len(self.group.runs) if self.group else 0
        found = str(n) if self.is_complete else f"{n} of {len(self.cells)}"
        return found if runs == n else f"{found} ({runs} runs)"

    @property
    def is_control(self) -> bool:
        """Say whether the others are to be read beside it."""
        return self.first.shown == "control"

    @property
    def is_complete(self) -> bool:
        """Say whether all of its cells have a record."""
        return self.n_seeds == len(self.cells)


def read_arms(listed: Sequence[Cell], *folders: Path) -> tuple[list[Arm], Collection]:
    """Put the records of folders to the cells of a list.

    Args:
        listed: The cells.
        folders: Of small records; need not exist. A cell that was run on several machines has a record in several.

    Returns:
        The arms by priority and in the list's order, those without records included; and all that was read.
    """
    found = _read(folders)
    # A record of other overrides is none of the cell that has its name now, see ``Places.is_done``.
    by_name: dict[str, list[Run]] = defaultdict(list)
    cells_of = {cell.name: cell for cell in listed}
    for run in found.runs:
        if run.path.stem in cells_of and _is_of(run, cells_of[run.path.stem]):
            by_name[run.path.stem].append(run)
    by_arm: dict[str, list[Cell]] = defaultdict(list)
    for cell in listed:
        by_arm[cell.arm].append(cell)
    arms = []
    for cells_of_arm in by_arm.values():
        runs = [run for cell in cells_of_arm for run in by_name[cell.name]]
        arms.append(Arm(tuple(cells_of_arm), Group(tuple(runs)) if runs else None))
    return arms, found


def _read(folders: Iterable[Path]) -> Collection:
    """Read each folder by itself: what was run again on another machine is no copy."""
    found = [collect([folder]) for folder in folders if folder.is_dir() and any(folder.glob("*.json"))]
    runs = tuple(run for one in found for run in one.runs)
    copies = [note for one in found for note in one.notes if "is the same run as" in note]
    return Collection(runs, tuple(left for one in found for left in one.left_out), (*copies, *commits_of(runs)))


def _is_of(run: Run, cell: Cell) -> bool:
    return bool(at(run.record, "cell", "overrides") == list(cell.all_overrides))


def summary_table(arms: Iterable[Arm]) -> str:
    """Make the table: a row for each arm that has records and is no ablation."""
    rows = []
    for arm in arms:
        if arm.group is None or not arm.first.is_row:
            continue
        run = arm.group.first
        reached = arm.group.mean("reached")
        sparsity = NONE if reached is None else f"{reached:.4f}"
        rows.append([arm.rows, arm.setting, run.contrast, sparsity, *cells(arm.group, _COLUMNS), arm.seeds])
    header = ["task", "pruning", "contrast", "sparsity", *(column.title for column in _COLUMNS), "seeds"]
    return markdown(header, rows) if rows else NOTHING


def contrast_differences(arms: Sequence[Arm]) -> list[tuple[Arm, Difference]]:
    """Compare every arm with contrast with the same arm without, where both have a seed in common."""
    without = {_apart_from(arm, "contrast"): arm for arm in arms if arm.first.contrast == "none"}
    found = []
    for arm in arms:
        difference = _difference(arm, without.get(_apart_from(arm, "contrast")))
        if arm.first.contrast != "none" and arm.first.is_row and difference is not None:
            found.append((arm, difference))
    return found


def differences_at_equal_seconds(arms: Sequence[Arm]) -> list[tuple[Arm, Difference]]:
    """Compare every arm with contrast with the one that was given as long without."""
    found = []
    for longer in (arm for arm in arms if arm.first.shown == "seconds"):
        for arm in arms:
            is_like_it = _apart_from(arm, "contrast", "variant") == _apart_from(longer, "contrast", "variant")
            has_contrast = arm.first.contrast != "none" and not arm.first.variant
            difference = _difference(arm, longer, of_equal_steps=False) if is_like_it and has_contrast else None
            if difference is not None:
                found.append((arm, difference))
    return found


def changes(arms: Sequence[Arm], *, shown: str = "table") -> list[tuple[Arm, Difference]]:
    """Compare every variant of one kind with the recipe, on the seeds that both have."""
    recipes = {_apart_from(arm, "variant"): arm for arm in arms if not arm.first.variant}
    found = []
    for arm in arms:
        difference = _difference(arm, recipes.get(_apart_from(arm, "variant")))
        if arm.first.shown == shown and arm.first.variant and difference is not None:
            found.append((arm, difference))
    return found


def winners(arms: Sequence[Arm]) -> list[tuple[Arm, Arm, Difference, list[Arm]]]:
    """Compare the pruning type of the highest mean score with the next, where a task, sparsity and contrast have two.

    Returns:
        First, second, their difference, and the types that were left out, as they have fewer seeds.
    """
    rivals: dict[tuple[object, ...], list[tuple[Arm, Group]]] = defaultdict(list)
    for arm in arms:
        if arm.group is not None and arm.first.shown == "table" and not arm.first.variant:
            rivals[_apart_from(arm, "pruning")].append((arm, arm.group))
    found = []
    for compared in rivals.values():
        most = max(arm.n_seeds for arm, _ in compared)
        order = sorted(
            (pair for pair in compared if pair[0].n_seeds == most), key=lambda pair: -(pair[1].mean("score") or 0.0)
        )
        if len(order) > 1:
            (first, _), (second, _) = order[:2]
            if (difference := _difference(first, second)) is not None:
                found.append((first, second, difference, [arm for arm, _ in compared if arm.n_seeds < most]))
    return found


def beside_controls(arms: Sequence[Arm]) -> list[tuple[Arm, Arm, Difference]]:
    """Compare every pruning type with each control that is run alike but for the type and its own settings."""
    found = []
    for control in (arm for arm in arms if arm.is_control and not arm.first.variant):
        for arm in arms:
            is_like_it = arm.first.shown == "table" and _apart_from(arm, "pruning") == _apart_from(control, "pruning")
            if is_like_it and (difference := _difference(arm, control)) is not None:
                found.append((arm, control, difference))
    return found


def comparisons(arms: Sequence[Arm]) -> str:
    """Say which pruning type is first, what contrast and changes add, and what controls reach; empty if unknown."""
    said: dict[str, list[str]] = defaultdict(list)
    for first, second, difference, others in winners(arms):
        contrast = "without contrast" if first.first.contrast == "none" else "with contrast"
        fewer = ", ".join(f"{arm.label} ({arm.seeds})" for arm in others)
        left_out = f", not compared with types of fewer seeds: {fewer}" if others else ""
        said[f"{_place(first)}, {first.label} minus {second.label}, the second highest"].append(
            f"{contrast} {difference.judged}{left_out}"
        )
    for arm, difference in contrast_differences(arms):
        said[f"{_place(arm)}, contrast minus none"].append(f"{arm.setting} {difference.judged}")
    for arm, difference in differences_at_equal_seconds(arms):
        said[f"{_place(arm)}, contrast minus none for about as many seconds"].append(f"{arm.label} {difference.judged}")
    for arm, difference in changes(arms):
        contrast = "" if arm.first.contrast == "none" else " with contrast"
        said[f"{_place(arm)}, {arm.first.variant} minus the recipe"].append(
            f"{arm.pruning}{contrast} {difference.judged}"
        )
    for arm, control, difference in beside_controls(arms):
        said[f"{_place(arm)}, minus {control.label}, each type with the scope that it has by itself"].append(
            f"{arm.label} {difference.judged}"
        )
    if not said:
        return ""
    lines = [f"- {compared}: {'; '.join(parts)}" for compared, parts in said.items()]
    return "\n".join(
        [
            "Differences of runs of one seed and one machine, on the same rows and of as many steps unless seconds are "
            "named, mean \N{PLUS-MINUS SIGN} standard error. Each is judged alone: of twenty one looks clear by "
            "chance, and the highest of many is in part luck.",
            *lines,
        ]
    )


def _difference(arm: Arm, base: Arm | None, *, of_equal_steps: bool = True) -> Difference | None:
    """Compare two arms on the seeds that both have; None where no two runs can be compared.

    Runs of two machines differ by more than most changes do (``benchmarks/records/again``): only runs of one are
    compared. A seed that both were run with on several counts once, by its mean.
    """
    if arm.group is None or base is None or base.group is None:
        return None
    scores = {_compared(run, with_steps=of_equal_steps): run.score for run in base.group.runs}
    by_seed: dict[int, list[float]] = defaultdict(list)
    for run in arm.group.runs:
        other = scores.get(_compared(run, with_steps=of_equal_steps))
        if run.seed is not None and run.score is not None and other is not None:
            by_seed[run.seed].append(run.score - other)
    return Difference({seed: statistics.fmean(found) for seed, found in by_seed.items()}) if by_seed else None


def _compared(run: Run, *, with_steps: bool) -> tuple[object, ...]:
    """Return what must be equal of two runs that are compared."""
    return (
        run.seed,
        machine(run),
        at(run.record, "data", "fingerprint"),
        run.record.get("steps") if with_steps else None,
    )


def _apart_from(arm: Arm, *axes: str) -> tuple[object, ...]:
    """Return what two arms must share that differ in these axes alone."""
    return tuple(getattr(arm.first, axis) for axis in _AXES if axis not in axes)


def _place(arm: Arm) -> str:
    return f"{arm.rows}, {arm.first.sparsity:g}"


def ablations(arms: Sequence[Arm]) -> list[tuple[Arm, Difference]]:
    """Compare every variant of an ablation with the recipe, the largest loss first."""
    return sorted(changes(arms, shown="ablation"), key=lambda pair: pair[1].mean)


def ablation_table(arms: Sequence[Arm]) -> str:
    """Make the table of what one change from the recipe does."""
    rows = [
        [arm.rows, f"{arm.first.sparsity:g}", arm.change, str(difference), arm.seeds]
        for arm, difference in ablations(arms)
    ]
    return markdown(["task", "sparsity", "one change", "minus the recipe", "seeds"], rows) if rows else NOTHING


def notes(arms: Sequence[Arm], found: Collection) -> list[str]:
    """Say what a reader must know: other settings in one row, other commits, cells without a record."""
    said = []
    for arm in arms:
        if arm.group is not None and len(group_runs(arm.group.runs)) > 1:
            said.append(f"{arm.first.arm}: its seeds were run with different settings.")
    listed = [cell for arm in arms for cell in arm.cells]
    in_arms = {run for arm in arms if arm.group is not None for run in arm.group.runs}
    others = [run.path.stem for run in found.runs if run not in in_arms]
    if others:
        said.append(f"Left out, since the list has no such run: {', '.join(others)}.")
    n_done = sum(arm.n_seeds for arm in arms)
    if n_done < len(listed):
        said.append(f"{n_done} of the {len(listed)} runs in the list have been made.")
    unreadable = [f"{left.path.name}: {left.reason}" for left in found.left_out]
    return [*said, *found.notes, *_machines(in_arms), *unreadable]


def machine(run: Run) -> str:
    """Say on what a run was made."""
    return str(at(run.record, "environment", "device") or "an unknown machine")


def _machines(runs: Iterable[Run]) -> list[str]:
    """Say on what the runs were made, where it was not one machine: equal seeds then share less than all."""
    made = Counter(machine(run) for run in runs)
    order = sorted(made.items(), key=lambda pair: (-pair[1], pair[0]))
    listed = "; ".join(f"{machine} ({n})" for machine, n in order)
    return [f"They were made on {len(made)} kinds of machine: {listed}."] if len(made) > 1 else []


def commands(arms: Iterable[Arm]) -> str:
    """List the command of each arm that has a record, for its first seed."""
    lines = [str(arm.group.first.record["command"]) for arm in arms if arm.group is not None]
    return "\n".join(["```", *lines, "```"]) if lines else NOTHING


def page_part(arms: Sequence[Arm], found: Collection, *, brief: bool = False) -> str:
    """Make what a page shows of the bake-off: table, sentences, notes, and a command.

    It is that of the highest mean score at the task and the sparsity that come first in the list.

    Args:
        arms: All arms of the list.
        found: All that was read.
        brief: Leave other sparsities than the first out of table and sentences, and changes from the recipe that lack
            seeds; out of the table all arms that lack seeds, unless all do. Controls stay.
    """
    shown = [arm for arm in arms if not brief or arm.is_control or _is_on_the_front_page(arm, arms[0].first.sparsity)]
    means = {arm: arm.group.mean("score") or 0.0 for arm in shown if arm.group and arm.first.shown == "table"}
    if not means:
        return NOTHING
    first = next(iter(means)).first
    means = {a: m for a, m in means.items() if (a.first.task, a.first.sparsity) == (first.task, first.sparsity)}
    is_one_complete = any(arm.is_complete for arm in shown)
    parts = [
        summary_table(
            [arm for arm in shown if arm.is_complete or arm.is_control] if brief and is_one_complete else shown
        ),
        comparisons(shown),
        " ".join(notes(arms, found)),
        commands([max(means, key=means.__getitem__)]),
    ]
    return "\n\n".join(part for part in parts if part)


def _is_on_the_front_page(arm: Arm, sparsity: float) -> bool:
    return arm.first.sparsity == sparsity and (arm.is_complete or not arm.first.variant)


__all__ = [
    "NOTHING",
    "Arm",
    "Difference",
    "ablation_table",
    "ablations",
    "beside_controls",
    "changes",
    "commands",
    "comparisons",
    "contrast_differences",
    "differences_at_equal_seconds",
    "machine",
    "notes",
    "page_part",
    "read_arms",
    "summary_table",
    "winners",
]
