"""What ``python -m cap.push`` does before it asks the Hub: read a run, write the folder of a repository."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, try_to_load_from_cache

from cap.base.errors import InputError, first_line
from cap.base.files import atomic_folder, read_json, real_folder, write_json
from cap.base.kinds import KINDS
from cap.config.push import Asked, PushConfig
from cap.data.tasks import TASKS, Task
from cap.runs.card import CARD, CARD_KEYS, write_card, write_export_card
from cap.runs.card_metadata import UNKNOWN, OnHub
from cap.runs.finished import FinishedRun, read_runs, require_keys
from cap.runs.folder import EXPORT, MODEL, RECORD, require_empty
from cap.runs.hidden_paths import without_places
from cap.runs.reading import is_held_out
from cap.training.recorded_model import recorded_model

log = logging.getLogger("cap.push")

_CONFIG = "config.json"
_MODULES = "modules.json"  # of sentence-transformers: names the folders that belong to a model
# What a saved model consists of; anything else in its folder was put there by hand, and stays here.
_SUFFIXES = (".json", ".safetensors", ".onnx", ".txt", ".model", ".jinja")
_BASE_IS_ELSEWHERE = ("folder ", "package ")


@dataclass(frozen=True)
class Pushed:
    """Hold what is pushed: a run, the folder of its model or of an export, and what that measured or None."""

    run: FinishedRun
    folder: Path
    export: Mapping[str, Any] | None

    @property
    def message(self) -> str:
        """The commit's message."""
        what = self.run.record["model"] if self.export is None else f"{self.run.record['model']}, {self.format}"
        return f"Push {what} at sparsity {self.run.record['sparsity']['prunable']:.4f}"

    @property
    def format(self) -> str:
        """How the model is written."""
        return "plain" if self.export is None else str(self.export["format"])


def read_pushed(asked: Asked) -> Pushed:
    """Read the record of a run, and of an export of it.

    Raises:
        InputError: If there is no finished run, the export is none or of another run, or only this machine could
            load it.
    """
    if (asked.run / EXPORT).is_file():
        raise InputError(
            f"run must be the folder of a finished run, got {asked.run} with {EXPORT}, an export; give the run, and "
            f"export={asked.run}"
        )
    (run,) = read_runs([asked.run])
    require_keys(run, CARD_KEYS)
    export = None if asked.export is None else _read_export(asked.export, run)
    if export is not None and export["format"] == "masks" and run.record["model"].startswith("folder "):
        raise InputError(
            f"masks lie on a base that others must be able to load, got one in the {run.record['model']} of this "
            f"machine; push the run's model, or another format"
        )
    folder = asked.export or asked.run / MODEL
    if not (folder / _CONFIG).is_file():
        raise InputError(
            f"a model has a {_CONFIG}, got {folder} without one; run it again with overwrite=true, or export it again"
        )
    return Pushed(run, folder, export)


def _read_export(folder: Path, run: FinishedRun) -> Mapping[str, Any]:
    required = f"export must be the folder of an export of run {run.name}, with {EXPORT}, got {folder}"
    try:
        export = read_json(folder / EXPORT)
        is_of_run = export["run"] == run.record["config_hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{required}, whose {EXPORT} cannot be read; give what cap.export wrote, or leave export out to push the "
            "run's model"
        ) from error
    if not is_of_run:
        raise InputError(f"{required} of another run ({export['run']}); give that run, or an export of this one")
    return dict(export)


def free_target(config: PushConfig, asked: Asked) -> Path:
    """Name the folder that ``dry_run=true`` writes.

    Raises:
        InputError: If it holds anything.
    """
    target = Path(config.output_dir or Path("outputs") / "push" / asked.repository.replace("/", "-"))
    require_empty(target)
    return real_folder(target)


def show(pushed: Pushed, config: PushConfig, target: Path) -> None:
    """Write the folder that would be pushed, and say where."""
    assert config.repo is not None
    with atomic_folder(target) as temporary:
        write_folder(pushed, config, temporary, repository=config.repo)
    names = ", ".join(sorted(path.name for path in target.iterdir()))
    log.info("this would be pushed to %s: %s, with %s", config.repo, target, names)


def write_folder(pushed: Pushed, config: PushConfig, folder: Path, *, repository: str) -> None:
    """Copy a model's own files, and write card and record without the places of this machine.

    Args:
        pushed: What is pushed.
        config: Licence and terms, where the user gives them.
        folder: Where to write.
        repository: ``owner/name``.
    """
    left_out = _copy_model(pushed.folder, folder)
    if left_out:
        log.info("not of the model, and left out: %s", ", ".join(left_out))
    record = without_places(pushed.run.record)
    write_json(folder / RECORD, record)
    terms = config.data_terms or _known_terms(record)
    on_hub = _on_hub(pushed, config, repository)
    if pushed.export is None:
        return write_card(folder, record, auto_class=on_hub.auto_class, terms=terms, on_hub=on_hub)
    export = without_places(pushed.export)
    write_json(folder / EXPORT, export)
    return write_export_card(folder, record, export, name=on_hub.name, terms=terms, on_hub=on_hub)


def _copy_model(source: Path, folder: Path) -> list[str]:
    """Copy what a model consists of, but for its card; return the names of what else lies there."""
    modules = source / _MODULES
    parts = [part["path"] for part in read_json(modules) if part.get("path")] if modules.is_file() else []
    left_out = []
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name in parts:
            (folder / path.name).mkdir()
            left_out += [f"{path.name}/{name}" for name in _copy_model(path, folder / path.name)]
        elif path.is_file() and path.suffix in _SUFFIXES and not path.name.startswith("."):
            shutil.copyfile(path, folder / path.name)
        elif path.name != CARD:  # that is written for the repository
            left_out.append(path.name)
    return left_out


def _on_hub(pushed: Pushed, config: PushConfig, repository: str) -> OnHub:
    record = pushed.run.record
    task = TASKS.get(record["config"]["task"]["name"])
    is_from_hub = task is not None and task.hub_path is not None and _is_own_data(record)
    base = str(record["model"])
    base_licence = _base_licence(record) or UNKNOWN
    return OnHub(
        repository=repository,
        auto_class=_auto_class(pushed.folder),
        licence=config.licence or base_licence,
        base_model=None if base.startswith(_BASE_IS_ELSEWHERE) else base,
        base_licence=base_licence,
        dataset=(str(task.hub_path), task.hub_config) if task is not None and is_from_hub else None,
        split=_split(record, task),
    )


def _auto_class(folder: Path) -> str:
    """Name the class of transformers for a model by what its configuration says of itself."""
    (architecture, *_) = read_json(folder / _CONFIG).get("architectures") or [""]
    heads = [kind.head for kind in KINDS.values() if kind.head.startswith("For") and architecture.endswith(kind.head)]
    return f"AutoModel{heads[0] if heads else ''}"


def _split(record: Mapping[str, Any], task: Task | None) -> str:
    """Name the split that a run was scored on."""
    if is_held_out(record):
        return "train"
    return task.validation_splits[0] if task is not None else "validation"


def _is_own_data(record: Mapping[str, Any]) -> bool:
    """Say whether a task's rows were its own, and not those of a folder."""
    return record["config"].get("data_dir") is None


def _known_terms(record: Mapping[str, Any]) -> str:
    task = TASKS.get(record["config"]["task"]["name"])
    return task.terms if task is not None and _is_own_data(record) else UNKNOWN


def _base_licence(record: Mapping[str, Any]) -> str | None:
    """Read the licence of the pre-trained model off its card, as far as that lies on this machine."""
    card = _base_card(record["config"].get("model") or {})
    if card is None or not card.is_file():
        return None
    try:
        licence = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("license")
    except (OSError, ValueError) as error:
        log.warning("the card of the pre-trained model cannot be read (%s)", first_line(error))
        return None
    return str(licence) if licence else None


def _base_card(settings: Mapping[str, Any]) -> Path | None:
    name = settings.get("name_or_path")
    if name is None:
        try:
            return Path(recorded_model(settings, named_in="the run's record").name_or_path) / CARD
        except InputError:
            return None  # the package is gone, or conf/model does not name it
    if Path(name).is_dir():
        return Path(name) / CARD
    try:
        cached = try_to_load_from_cache(name, CARD, revision=settings.get("revision") or "main")
    except ValueError:
        return None  # no Hub name: a folder that is gone
    return Path(cached) if isinstance(cached, str) else None


__all__ = ["Pushed", "free_target", "read_pushed", "show", "write_folder"]
