"""Run the sides of a comparison seed by seed, and keep what came out of each as it comes."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from benchmarks.peers.cap_itself import compact_folder
from benchmarks.peers.sides import COMPARISONS, Side, comparison_of, require_sides
from benchmarks.peers.student import Outcome
from cap.base.errors import InputError, RunError
from cap.base.files import content_key, read_json, write_json
from cap.base.settings import what_counts
from cap.config.check import check
from cap.formats.latency import paired_latency
from cap.formats.load import load
from cap.models.families import longest_input
from cap.runs.environment import environment
from cap.runs.folder import MODEL

log = logging.getLogger("cap.peers")

N_SEEDS = 3
OUTPUTS = Path("outputs/benchmarks/peers")
ROWS, TOKENS = 32, 128  # of the batch that latency is measured on
_PLACES = ("output_dir=", "cache_dir=", "resume=", "overwrite=", "trainer.enable_progress_bar=")


def compare(cfg: DictConfig) -> dict[str, Any]:
    """Run all sides with every seed; what is there already is left as it is, but with ``overwrite=true``.

    Outcomes lie in ``outcomes/``, one file each. After each seed ``results.json`` holds what there is so far.

    Returns:
        What ``results.json`` holds after the last seed.

    Raises:
        InputError: If a side cannot run, or the folder holds what came out of another configuration.
        RunError: If the sides took different numbers of steps.
    """
    kind = comparison_of(cfg)
    sides = COMPARISONS[kind]
    root = Path(cfg.output_dir or OUTPUTS / cfg.task.name / f"{cfg.pruning.name}-{cfg.sparsity:g}")
    checked = check(cfg)
    require_sides(sides, checked)
    seeds = range(cfg.seed, cfg.seed + N_SEEDS)
    key = content_key({**what_counts(checked.resolved), "seed": None})
    kept = {(seed, name): Kept(root, name, seed, cfg, key=key) for seed in seeds for name in sides}
    results: dict[str, Any] = {}
    for seed in seeds:
        missing = [name for name in sides if kept[seed, name].outcome is None]
        for name in missing:
            _say_what_remains(kept, seed, name)
            kept[seed, name].make(sides[name])
        if not missing and seed != seeds[-1]:
            continue
        done = {name: [one for s in range(cfg.seed, seed + 1) if (one := kept[s, name].outcome)] for name in sides}
        _require_equal_steps(done)
        results = {
            **_setting(cfg, kind, done),
            "latency": _latency({name: kept[cfg.seed, name].model for name in sides}),
            "sides": {
                name: {"is_ours": sides[name].is_ours, "seeds": {cfg.seed + i: asdict(o) for i, o in enumerate(found)}}
                for name, found in done.items()
            },
        }
        write_json(root / "results.json", results)
    return results


class Kept:
    """Hold what came out of one side with one seed, in a file of its own.

    Args:
        root: The folder of the comparison.
        name: The side's name.
        seed: The seed.
        cfg: The configuration of the comparison.
        key: Names what of it changes a result, but for the seed.

    Raises:
        InputError: If the file is of another configuration.
    """

    def __init__(self, root: Path, name: str, seed: int, cfg: DictConfig, *, key: str) -> None:
        own = f"{name.replace(', ', '-')}-{seed}"
        self.name = name
        self.seed = seed
        self.cfg = cfg.copy()
        self.cfg.seed, self.cfg.output_dir = seed, str(root / own)
        self.cfg.resume = not cfg.overwrite
        self.file = root / "outcomes" / f"{own}.json"
        self.key = key
        self.outcome: Outcome | None = None
        self.seconds: float | None = None
        if cfg.overwrite:
            # What is left of an earlier comparison would stand beside the new one, should this one be stopped.
            self.file.unlink(missing_ok=True)
            shutil.rmtree(compact_folder(self.cfg.output_dir), ignore_errors=True)
        elif self.file.is_file():
            self._read()

    def _read(self) -> None:
        found = read_json(self.file)
        if found["key"] != self.key:
            raise InputError(
                f"a comparison goes on with what came out of the same configuration, but {self.file} is of another "
                f"one; give another output_dir, or set overwrite=true"
            )
        self.outcome, self.seconds = Outcome(**found["outcome"]), found["seconds"]

    @property
    def model(self) -> Path:
        """Where the saved model lies."""
        compact = compact_folder(self.cfg.output_dir)
        return compact if compact.is_dir() else Path(self.cfg.output_dir) / MODEL

    def make(self, side: Side) -> None:
        """Run the side, and keep what came out."""
        started = time.perf_counter()
        outcome = side.run(self.cfg)
        self.outcome, self.seconds = outcome, time.perf_counter() - started
        write_json(self.file, {"key": self.key, "seconds": self.seconds, "outcome": asdict(outcome)})


def minutes_left(seconds: Mapping[str, Iterable[float]], left: Iterable[str]) -> float | None:
    """Estimate how long the runs take that are left.

    Args:
        seconds: What earlier runs took, by side.
        left: The sides of those that are left, one entry a run.

    Returns:
        Minutes; a side that has not run yet counts as the mean of all runs. None before the first run.
    """
    by_side = {name: statistics.fmean(values) for name, found in seconds.items() if (values := list(found))}
    every = [value for found in seconds.values() for value in found]
    return sum(by_side.get(name, statistics.fmean(every)) for name in left) / 60 if every else None


def _say_what_remains(kept: Mapping[tuple[int, str], Kept], seed: int, name: str) -> None:
    left = [one.name for one in kept.values() if one.outcome is None]
    seconds = {other: [k.seconds for k in kept.values() if k.name == other and k.seconds] for _, other in kept}
    minutes = minutes_left(seconds, left)
    remains = "no estimate before the first run has ended" if minutes is None else f"about {minutes:.0f} minutes left"
    log.info("seed %d, %s: run %d of %d, %s", seed, name, len(kept) - len(left) + 1, len(kept), remains)


def _require_equal_steps(done: Mapping[str, list[Outcome]]) -> None:
    steps = {name: [one.steps for one in found] for name, found in done.items()}
    if len(set(map(tuple, steps.values()))) > 1:
        raise RunError(f"all sides must take as many optimizer steps, got {steps}")


def _setting(cfg: DictConfig, kind: str, done: Mapping[str, list[Outcome]]) -> dict[str, Any]:
    """Say what was compared: all sides have it in common."""
    first = next(iter(done.values()))
    teachers = [one.teacher for one in first if one.teacher is not None]
    return {
        "environment": environment(),
        "versions": {
            side.package: metadata.version(side.package) for side in COMPARISONS[kind].values() if side.package
        },
        "command": shown_command(HydraConfig.get().overrides.task if HydraConfig.initialized() else ()),
        "task": cfg.task.name,
        "n_rows": first[0].n_rows,
        "kind": kind,
        "pruning": cfg.pruning.name,
        "sparsity": cfg.sparsity,
        "metric": first[0].metric,
        "majority": first[0].majority,
        "teacher": statistics.fmean(teachers) if teachers else None,
        "steps": first[0].steps,
    }


def shown_command(words: Iterable[str]) -> str:
    """Write the command of a comparison without places: the folder above what is read is DIR.

    Args:
        words: The overrides that were typed.
    """
    shown = []
    for word in words:
        key, _, value = word.partition("=")
        if not word.startswith(_PLACES):
            shown.append(f"{key}=DIR/{Path(value).name}" if Path(value).is_absolute() else word)
    return shlex.join(["python", "-m", "benchmarks.peers", *shown])


def _latency(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Measure the saved models in turns: quartiles of the milliseconds of a batch, by side."""
    models = {name: load(folder) for name, folder in folders.items()}
    reference = next(iter(models))
    config = models[reference].config
    (found,) = paired_latency(
        models,
        reference=reference,
        vocabulary_size=config.vocab_size,
        batch_sizes=[ROWS],
        lengths=[min(TOKENS, longest_input(config) or TOKENS)],
    )
    return {
        "rows": found.batch_size,
        "tokens": found.length,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "milliseconds": {name: asdict(one.milliseconds) for name, one in found.models.items()},
    }
