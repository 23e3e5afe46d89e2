"""What a run of ``cap.train`` reads, by content: a finished run is found only for the same rows and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cap.base.errors import InputError
from cap.base.files import file_sha256
from cap.config.schema import TrainConfig
from cap.data.docstrings import docstring_source
from cap.data.files import file_hashes
from cap.data.tasks import TASKS, known_kind
from cap.models.sources import resolve_source
from cap.models.weight_files import weight_hashes


def hashes_of_rows(config: TrainConfig) -> dict[str, str]:
    """Hash the files that rows are read from, by name, ``data.unlabelled`` among them; none if any of them is gone."""
    found: dict[str, str] = {}
    try:
        if config.data.unlabelled is not None:
            found["data.unlabelled"] = file_sha256(Path(config.data.unlabelled))
        if config.data_dir is not None:
            known = TASKS.get(config.task.name)
            splits = ("validation",) if known is None else known.validation_splits
            if config.data.held_out_rows is not None:  # then the first is all that is read
                splits = splits[:1]
            found |= file_hashes(Path(config.data_dir), ("train", *splits), kind=known_kind(config.task.name))
    except (InputError, OSError):
        return {}
    return found


def hashes_of_weights(config: TrainConfig) -> dict[str, dict[str, str]]:
    """Hash the weights of the models that are given to a run; a teacher that cap makes follows from them and the rows.

    Returns:
        By role, ``model`` and ``teacher``, and file name; a model that is not there is left out.
    """
    model, found = config.model, {}
    try:
        # Its sha256, if there is one, was compared when the run was made, or will be before the model is loaded.
        source = resolve_source(model.name_or_path, package=model.package, sha256=None, revision=model.revision)
        found["model"] = weight_hashes(source.name_or_path, revision=source.revision)
    except InputError:
        pass
    if config.teacher not in ("auto", "none"):
        found["teacher"] = weight_hashes(config.teacher)
    return {role: hashes for role, hashes in found.items() if hashes}


def changes_since(config: TrainConfig, record: Mapping[str, Any]) -> list[str]:
    """Compare what a finished run has read with what the same configuration would read now.

    Files with the same bytes hold the same rows. Others are read, since they may still hold the same ones: those of a
    record that names no files, too. What is no longer there, and what comes from the Hub, is not compared.

    Args:
        config: The configuration.
        record: Of the finished run.

    Returns:
        What has changed, in words.
    """
    changes = []
    if _may_have_other_rows(config, record["data"]):
        from cap.training.preparation import configured_task, rows_of  # takes seconds; files seldom change

        now = rows_of(config, configured_task(config))
        known = [(now.source, record["data"]["fingerprint"], now.fingerprint)]
        if now.unlabelled is not None:
            before_it = (record["data"].get("unlabelled") or {}).get("fingerprint")
            known.append((now.unlabelled.source, before_it, now.unlabelled.fingerprint))
        changes += [
            f"the rows of {source} (their fingerprint was {then} and is {found})"
            for source, then, found in known
            if then != found
        ]
    before = record.get("weights_sha256") or {}
    changes += [
        f"the weights of the {role} ({name})"
        for role, hashes in hashes_of_weights(config).items()
        for name in sorted(hashes)
        if before.get(role) and before[role].get(name) != hashes[name]
    ]
    return changes


def _may_have_other_rows(config: TrainConfig, before: Mapping[str, Any]) -> bool:
    if config.data_dir is not None or config.data.unlabelled is not None:
        now = hashes_of_rows(config)
        return bool(now) and now != before.get("files")
    return config.task.name == "docstrings" and docstring_source() != before["source"]


__all__ = ["changes_since", "hashes_of_rows", "hashes_of_weights"]
