"""Find the records of runs below folders, and tell those that count from those that do not."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cap.base.errors import InputError
from cap.base.files import content_key, read_json
from cap.reports.run import Run
from cap.runs.folder import is_held
from cap.runs.hidden_paths import without_places
from cap.runs.reading import at, mapping, named

RECORD = "record.json"
# What git_commit puts behind a commit whose files were changed, and how much of a commit names it.
_DIRTY, _SHORT = "-dirty", 9
# Beside one of these a config.yaml is that of a run.
_LEFT_BY_A_RUN = ("checkpoints", "train.log", "model")
_STATUSES = ("completed", "interrupted", "failed")
# The settings that name models by their folders.
_MODELS = ("model.name_or_path", "teacher")
# What cap.evaluate writes beside the models that it scores.
_EVALUATION = "evaluation"
_OPTIONAL = (
    ("config_hash",),
    ("seed",),
    ("model",),
    ("data", "fingerprint"),
    ("scores", "teacher"),
    ("sparsity", "asked"),
    ("retention",),
    ("retention_above_majority",),
    ("seconds_per_step",),
    ("seconds", "fit"),
    ("config", "trainer"),
)
KNOWN = frozenset(
    {
        "status",
        "error",
        "command",
        "config",
        "config_hash",
        "environment",
        "seed",
        "data",
        "metric",
        "asks",
        "model",
        "scores",
        "levels",
        "teacher",
        "retention",
        "retention_reason",
        "retention_above_majority",
        "retention_above_majority_reason",
        "sparsity",
        "matrices",
        "matrix_kinds",
        "units",
        "layers",
        "steps",
        "seconds_per_step",
        "seconds",
        "peak_memory_gb",
        "warnings",
        "exports",
        "resumed_at",
        "kept",
        "wandb_id",
        "kind",
        "cell",
        "validations",
        "seconds_comparable",
        "commits",
        "dynamics",
        "gradient_shares",
        "weights_sha256",
        "pooling",
    }
)
"""The keys of a record that this version knows."""


@dataclass(frozen=True)
class LeftOut:
    """Name something that is in no mean.

    Args:
        path: The record, or the folder that has none.
        shown: That path as a reader may see it.
        reason: Why it does not count, in one line.
    """

    path: Path
    shown: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """Hold what was found.

    Args:
        runs: Completed runs, each once, in the order of their paths.
        left_out: Runs that failed, were interrupted or are incomplete.
        notes: Sentences that a reader of the result must know.
    """

    runs: tuple[Run, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def collect(folders: Sequence[Path]) -> Collection:
    """Read every record below folders.

    Args:
        folders: ``record.json`` counts at any depth below them, hidden folders apart, and every other ``*.json`` that
            lies in one of them directly.

    Returns:
        What was found.

    Raises:
        InputError: If one is no folder, or there is no record in any.
    """
    found = _find(folders)
    runs, left_out = [], []
    n_evaluations = 0
    for path, shown in found.items():
        if path.is_dir():
            left_out.append(LeftOut(path, shown, f"incomplete: the folder of a run without a {RECORD}"))
            continue
        read = _read(path, shown)
        if isinstance(read, Run):
            runs.append(read)
        elif isinstance(read, LeftOut):
            left_out.append(read)
        else:
            n_evaluations += 1
    kept, copies = _without_copies(runs)
    warnings = [f"{run.shown}: {' '.join(str(text).split())}" for run in kept for text in _warnings(run)]
    notes = (*copies, *_evaluations(n_evaluations), *_other_versions(kept), *commits_of(kept), *warnings)
    return Collection(tuple(kept), tuple(left_out), notes)


def _find(folders: Sequence[Path]) -> dict[Path, str]:
    shown: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"every argument must be a folder that holds runs, got {folder}; give existing folders")
        for path in sorted(_records(folder)):
            # The same file may lie below two of the folders.
            shown.setdefault(path.resolve(), path.as_posix())
    if not shown:
        names = ", ".join(str(folder) for folder in folders)
        raise InputError(f"the folders must hold runs, but there is no {RECORD} below {names}; give others")
    return shown


def _records(folder: Path) -> Iterator[Path]:
    """List the records below a folder, and the folders of runs that have none."""
    yield from (path for path in folder.glob("*.json") if path.name != RECORD and not path.name.startswith("."))
    for inner in _folders(folder):
        if (inner / RECORD).is_file():
            yield inner / RECORD
        elif (inner / "config.yaml").is_file() and any((inner / name).exists() for name in _LEFT_BY_A_RUN):
            yield inner


def _folders(folder: Path) -> Iterator[Path]:
    """Walk through a folder and those below it, behind links too, each once."""
    waiting, seen = [folder], set()
    while waiting:
        for place, names, _ in os.walk(waiting.pop(0)):
            here = Path(place)
            if (real := here.resolve()) in seen:
                names.clear()
                continue
            seen.add(real)
            # A folder that is being written, or that a killed process left half written, bears a name with a dot.
            names[:] = [name for name in names if not name.startswith(".")]
            waiting += [here / name for name in names if (here / name).is_symlink()]
            yield here


def _read(path: Path, shown: str) -> Run | LeftOut | None:
    """Read a record; None is that of an evaluation, which is no run and no failure of one."""
    try:
        record: Any = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        return LeftOut(path, shown, f"unreadable: {' '.join(str(error).split()) or type(error).__name__}")
    if not isinstance(record, dict) or record.get("status") not in _STATUSES:
        return LeftOut(path, shown, f"not the record of a run: no status of {', '.join(_STATUSES)}")
    if record.get("kind") == _EVALUATION:
        return None
    if record.get("kind") is not None:
        return LeftOut(path, shown, f"not a run: {record['kind']}")
    if record["status"] == "interrupted" and record.get("error") is None and is_held(path.parent):
        return LeftOut(path, shown, "running: it is in no table before it is complete")
    if record["status"] != "completed":
        why = " ".join(str(record.get("error") or "the record does not say why").split())
        return LeftOut(path, shown, f"{record['status']}: {why}")
    run = Run(path, shown, record)
    missing = list(_missing(run))
    return LeftOut(path, shown, f"incomplete: without {', '.join(missing)}") if missing else run


def _missing(run: Run) -> Iterator[str]:
    for key in ("task", "pruning"):
        if not named(run.config.get(key)):
            yield f"config.{key}.name"
    if not isinstance(run.config.get("contrast"), dict):
        yield "config.contrast"
    metric = run.record.get("metric")
    if not isinstance(metric, str):
        yield "metric"
    elif run.score is None:
        yield f"scores.pruned.{metric}"
    if run.reached is None:
        yield "sparsity.prunable"


def _without_copies(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    kept: list[Run] = []
    # What cap.push has made of a record names no place of the machine that wrote it.
    known: dict[str, list[Run]] = defaultdict(list)
    notes = []
    for run in runs:
        alike = known[content_key([without_places(run.identity), run.seed])]
        first = next((other for other in alike if _have_one_start(run, other)), run)
        if first is run:
            alike.append(run)
            kept.append(run)
        else:
            differs = (
                "" if first.score == run.score else f", although their scores differ, {first.score} and {run.score}"
            )
            notes.append(
                f"{run.shown} is the same run as {first.shown}: one configuration, one seed, the same rows. "
                f"Only the latter counts{differs}."
            )
    return kept, notes


def _have_one_start(run: Run, other: Run) -> bool:
    """Say whether runs that are alike but for places began with the same models, whose folders may have one name."""
    if run.weights and other.weights:
        return bool(run.weights == other.weights)
    places = [[one.identity.get(key) for key in _MODELS] for one in (run, other)]
    return places[0] == places[1] or run.record.get("config_hash") == other.record.get("config_hash")


def _evaluations(count: int) -> Iterator[str]:
    if count:
        one = "1 record is that of an evaluation (cap.evaluate), which is no run; it is in no table."
        several = f"{count} records are those of evaluations (cap.evaluate), which are no runs; they are in no table."
        yield one if count == 1 else several


def _other_versions(runs: Sequence[Run]) -> Iterator[str]:
    absent, unknown = defaultdict(list), defaultdict(list)
    for run in runs:
        for keys in _OPTIONAL:
            if keys[-1] not in mapping(at(run.record, *keys[:-1]) if keys[:-1] else run.record):
                absent[".".join(keys)].append(run)
        for key in sorted(set(run.record) - KNOWN):
            unknown[key].append(run)
    for key, lacking in absent.items():
        yield f"{_count(lacking)} no {key}, as another version wrote it; what follows from it is left empty."
    for key, having in unknown.items():
        yield f"{_count(having)} the key {key}, which this version does not know; it was not read."


def commits_of(runs: Sequence[Run]) -> Iterator[str]:
    """Say which code made the runs, where it was not one commit without changes."""
    made = {run: {str(commit) for commit in _at_commits(run) if commit} for run in runs}
    clean = Counter(commit for commits in made.values() for commit in {name.removesuffix(_DIRTY) for name in commits})
    if len(clean) > 1:
        listed = ", ".join(f"{commit[:_SHORT]} ({n})" for commit, n in clean.most_common())
        yield f"The runs were made at {len(clean)} commits: {listed}."
    dirty = [run for run, commits in made.items() if any(commit.endswith(_DIRTY) for commit in commits)]
    if dirty:
        yield f"{_count(dirty, 'was', 'were')} made with changes that are in no commit."


def _at_commits(run: Run) -> Sequence[Any]:
    """List the commits that a run was made at; several where it was interrupted."""
    several = run.record.get("commits")
    return several if isinstance(several, list) else [at(run.record, "environment", "git_commit")]


def _count(runs: Sequence[Run], one: str = "has", several: str = "have") -> str:
    return f"{runs[0].shown} {one}" if len(runs) == 1 else f"{len(runs)} records {several}"


def _warnings(run: Run) -> Sequence[Any]:
    warnings = run.record.get("warnings")
    return warnings if isinstance(warnings, list) else []


__all__ = ["KNOWN", "RECORD", "Collection", "LeftOut", "collect", "commits_of"]
