"""The typed schema of conf/export.yaml, and its rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING, DictConfig

from cap.base.errors import InputError, nearest_first
from cap.config.typed import typed

FORMAT_NAMES = ("compact", "sparse", "masks", "onnx", "int8", "semi_structured", "plain")
"""What may follow ``format=``; ``cap.formats.export_formats`` knows how each is written, and needs torch for it."""

EVERY_FORMAT = "all"
"""What ``format`` is for each that the run can have."""
OWN_ROWS = "auto"
"""What ``vocabulary`` is for the run's own training rows."""
SPLIT, NEAREST = "split", "nearest"
RESTS = (SPLIT, NEAREST)
"""What becomes of a piece whose row of the word embedding goes: it is read in smaller pieces, or it shares the kept row
that is nearest to its own."""


@dataclass
class ExportConfig:
    """Hold everything that ``python -m cap.export`` takes; values live in conf/export.yaml, types here."""

    run: str | None = MISSING
    format: str = MISSING
    vocabulary: str | None = MISSING
    vocabulary_rest: str = MISSING
    output_dir: str | None = MISSING
    data_dir: str | None = MISSING
    check_rows: int = MISSING
    latency_seconds: float = MISSING
    cache_dir: str = MISSING
    traceback: bool = MISSING


def check_export(cfg: DictConfig) -> tuple[ExportConfig, Path]:
    """Apply every rule to a composed configuration, before anything is read.

    Returns:
        The typed values, and the run's folder.

    Raises:
        InputError: With one line for each rule that is broken.
    """
    config = typed(cfg, ExportConfig, "export")
    problems = []
    if not config.run:
        problems.append("run must be the folder of a finished run, got none; give run=outputs/A, say")
    words = (*FORMAT_NAMES, EVERY_FORMAT)
    if config.format not in words:
        nearest = ", ".join(nearest_first(config.format, words))
        problems.append(f"format must be one of {nearest}, got {config.format!r}")
    if config.vocabulary_rest not in RESTS:
        problems.append(f"vocabulary_rest must be one of {', '.join(RESTS)}, got {config.vocabulary_rest!r}")
    elif config.vocabulary_rest != SPLIT and config.vocabulary is None:
        problems.append(
            f"vocabulary_rest={config.vocabulary_rest} says what becomes of the pieces that vocabulary leaves out, got "
            f"vocabulary=null; give vocabulary=auto, or leave vocabulary_rest out"
        )
    if config.check_rows < 1:
        problems.append(f"check_rows must be at least 1, got {config.check_rows}")
    if not config.latency_seconds >= 0:
        problems.append(f"latency_seconds must be >= 0, got {config.latency_seconds}")
    if problems or not config.run:
        raise InputError("\n".join(problems))
    return config, Path(config.run)


__all__ = ["EVERY_FORMAT", "FORMAT_NAMES", "NEAREST", "OWN_ROWS", "RESTS", "SPLIT", "ExportConfig", "check_export"]
