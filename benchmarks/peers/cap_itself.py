"""Runs of ``cap.train``, as they are configured."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from benchmarks.peers.student import Outcome, outcome_of
from cap.base.files import atomic_folder, read_json
from cap.config.check import check
from cap.formats.compact import compact, save_compact
from cap.formats.load import load
from cap.runs.folder import MODEL
from cap.train import train
from cap.training.preparation import prepare
from cap.training.ready import make_ready


def run_masked(cfg: DictConfig) -> Outcome:
    """Make the run, or go on with it; its model keeps its zeros."""
    train(cfg)
    return _outcome(cfg, Path(cfg.output_dir) / MODEL)


def run_compact(cfg: DictConfig) -> Outcome:
    """Make the run likewise, and take the heads and FFN units that it has pruned out of its model."""
    train(cfg)
    smaller, model = compact_folder(cfg.output_dir), Path(cfg.output_dir) / MODEL
    prepared = prepare(make_ready(check(cfg)))
    with atomic_folder(smaller) as folder:
        save_compact(compact(load(model)).model, prepared.tokenizer, folder)
    return _outcome(cfg, smaller)


def compact_folder(output_dir: str) -> Path:
    """Name the folder of the smaller model: beside the run's, which holds nothing that is not its own."""
    return Path(f"{output_dir}-compact")


def _outcome(cfg: DictConfig, folder: Path) -> Outcome:
    record = read_json(Path(cfg.output_dir) / "record.json")
    ready = make_ready(check(cfg))
    return outcome_of(
        folder,
        ready,
        prepare(ready),
        teacher=record["scores"].get("teacher") or {},
        steps=record["steps"],
        seconds_per_step=record["seconds_per_step"],
    )
