"""The typed schema of conf/push.yaml, and its rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, without an __all__
from omegaconf import MISSING, DictConfig

from cap.base.errors import InputError
from cap.config.typed import typed


@dataclass
class PushConfig:
    """Hold everything that ``python -m cap.push`` takes; values live in conf/push.yaml, types here."""

    run: str | None = MISSING
    export: str | None = MISSING
    repo: str | None = MISSING
    private: bool = MISSING
    licence: str | None = MISSING
    data_terms: str | None = MISSING
    dry_run: bool = MISSING
    output_dir: str | None = MISSING
    traceback: bool = MISSING


@dataclass(frozen=True)
class Asked:
    """Hold what is pushed and where to: the run's folder, an export of it or None, and the repository's name."""

    run: Path
    export: Path | None
    repository: str


def check_push(cfg: DictConfig) -> tuple[PushConfig, Asked]:
    """Apply every rule to a composed configuration, before anything is read.

    Returns:
        The typed values, and what is pushed where to.

    Raises:
        InputError: With one line for each rule that is broken.
    """
    config = typed(cfg, PushConfig, "push")
    problems = []
    if not config.run:
        problems.append("run must be the folder of a finished run, got none; give run=outputs/A, say")
    if not config.repo:
        problems.append("repo must be the name of a repository on the Hub, got none; give repo=NAME or repo=OWNER/NAME")
    elif not _is_repository(config.repo):
        problems.append(
            f"repo must be NAME or OWNER/NAME of letters, digits, '-', '_' and '.', 96 at most, got {config.repo!r}; "
            "give repo=my-model, say"
        )
    if config.output_dir is not None and not config.dry_run:
        problems.append(
            f"output_dir is where dry_run=true writes, got {config.output_dir} without it; leave it out, or set it"
        )
    if problems or not config.run or not config.repo:
        raise InputError("\n".join(problems))
    export = None if config.export is None else Path(config.export)
    return config, Asked(Path(config.run), export, config.repo)


def _is_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


__all__ = ["Asked", "PushConfig", "check_push"]
