"""The model card: what a saved model is, how it was made, what it scores, how to load it, and what it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cap.base.files import atomic_file
from cap.base.markdown import table
from cap.runs.asking import asked
from cap.runs.card_metadata import OnHub, metadata
from cap.runs.hidden_paths import without_folders
from cap.runs.reading import is_held_out

CARD = "README.md"
CARD_KEYS = (
    "command",
    "config.max_length",
    "config.pruning.name",
    "config.task.name",
    "data.fingerprint",
    "data.n_rows",
    "data.source",
    "environment",
    "metric",
    "model",
    "retention",
    "retention_above_majority",
    "scores.pruned",
    "seed",
    "sparsity.asked",
    "sparsity.encoder",
    "sparsity.model",
    "sparsity.prunable",
)
"""What a card reads of a record, see ``cap.runs.finished.require_keys``."""
_DASH = "\N{EN DASH}"
_AS_LARGE = (
    "Zeros take part in every product: this folder is as large and as slow as the dense model. `python -m cap.export` "
    "makes it smaller."
)
_LOAD_STOCK = """from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("{folder}").eval()
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""
_LOAD_SENTENCES = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}")
vectors = model.encode(["a text", "another one"])  # AutoModel.from_pretrained gives the hidden states"""
_LOAD_OURS = """import cap
from transformers import AutoTokenizer

model, tokenizer = cap.load("{folder}"), AutoTokenizer.from_pretrained("{folder}")"""


def write_card(
    folder: Path, record: Mapping[str, Any], *, auto_class: str, terms: str, on_hub: OnHub | None = None
) -> None:
    """Write the card of a run's model.

    Args:
        folder: The model's folder.
        record: Of the run, see ``cap.runs.record``; with exports that were measured, their latency is on the card.
        auto_class: The class of transformers that loads it.
        terms: Under which the data may be used.
        on_hub: What is said on the Hub besides; None for the card of a folder.
    """
    name = folder.name if on_hub is None else on_hub.repository
    limits = [*([] if record.get("layers") else [_AS_LARGE]), *_limits(record)]
    is_encoder = auto_class == "AutoModel"
    lines = _LOAD_SENTENCES if is_encoder else _LOAD_STOCK + _asked(record)
    library = "sentence-transformers" if is_encoder else "transformers"
    parts = [
        metadata(record, record["scores"]["pruned"], library=library, on_hub=on_hub),
        _title(record),
        f"{_how_it_was_made(record)}.",
        _scores(record, {"this model": record["scores"]["pruned"]}, record),
        _sparsity_of_run(record),
        *_latency_of_exports(record.get("exports") or {}),
        _loading(lines.format(auto_class=auto_class, folder=name), on_hub, is_stock=True),
        _data(record, terms),
        *_licences(on_hub),
        _listed("Limits", limits),
    ]
    _write(folder, parts)


def record_of_level(record: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Make of a run's record one for the card of a model that ``keep_levels`` kept; its retention is the caller's.

    Args:
        record: Of the run.
        kept: The model's line in it.
    """
    limits = [f"Kept in step {kept['step']:,} of a run that went on to sparsity {record['sparsity']['asked']:g}."]
    if not kept.get("is_retrained", False):
        limits.append(
            "Saved as the schedule passed this sparsity, without training at it: a run of its own may score higher."
        )
    scores = {**record["scores"], "pruned": kept["scores"]}
    return {**record, "scores": scores, "sparsity": kept["sparsity"], "exports": None, "warnings": limits}


def write_export_card(
    folder: Path,
    record: Mapping[str, Any],
    export: Mapping[str, Any],
    *,
    name: str,
    terms: str,
    on_hub: OnHub | None = None,
) -> None:
    """Write the card of an exported model.

    Args:
        folder: The exported folder.
        record: Of the run that it was made of.
        export: What the export measured, see ``cap.formats.exports``.
        name: What the folder will be called.
        terms: Under which the data may be used.
        on_hub: What is said on the Hub besides; None for the card of a folder.
    """
    is_stock = export["loads_with_transformers"]
    name = on_hub.repository if on_hub is not None and is_stock else name
    load = (export["how_to_load"] or _LOAD_OURS + _asked(record)).format(folder=name)
    scores = {"this model": record["scores"]["pruned"]}
    if export["scores"] is not None:
        scores = {"before export": record["scores"]["pruned"], "this model": export["scores"]}
    check = export["check"]
    parts = [
        metadata(record, scores["this model"], library="transformers" if is_stock else None, on_hub=on_hub),
        _title(record),
        f"{_how_it_was_made(record)}, and exported with\n\n```\n{without_folders(export['command'])}\n```",
        f"On {check['rows']} of {_scored(record)} its logits differ from those of the run's model by "
        f"{check['largest_difference']:.3g} at most.",
        _scores(record, scores, export["retention"] or record),
        _sparsity_of_export(record, export["sparsity"]),
        _size(export),
        _latency_of_export(export),
        _loading(load, on_hub, is_stock=is_stock),
        _data(record, terms),
        *_licences(on_hub),
        _listed("Limits", [*export["notes"], *_limits(record)]),
    ]
    _write(folder, parts)


def _write(folder: Path, parts: Sequence[str]) -> None:
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _title(record: Mapping[str, Any]) -> str:
    sparsity, task = f"{record['sparsity']['prunable']:.4f}", record["config"]["task"]["name"]
    if record["config"]["pruning"]["name"] == "keep_zeros":
        return f"# {record['model']}, pruned to {sparsity} before, trained on {task} with its zeros kept"
    return f"# {record['model']}, pruned to {sparsity} on {task}"


def _how_it_was_made(record: Mapping[str, Any]) -> str:
    return (
        f"Made by cap ({record['config']['pruning']['name']} pruning) with\n\n"
        f"```\n{without_folders(record['command'])}\n```\n\n"
        f"seed {record['seed']}, commit {record['environment'].get('git_commit') or 'unknown'}"
    )


def _scores(record: Mapping[str, Any], models: Mapping[str, Mapping[str, float]], retained: Mapping[str, Any]) -> str:
    """Set models side by side.

    Args:
        record: Of the run.
        models: Scores by what a column is called, this model's last.
        retained: Where the retention of this model stands.
    """
    columns = {"dense teacher": record["scores"].get("teacher"), **models}
    columns["learned nothing"] = record["scores"].get("majority")
    rows = [[name, *(_score(scores, name) for scores in columns.values())] for name in models["this model"]]
    kept = _retention(retained, "retention"), _retention(retained, "retention_above_majority")
    return "\n".join(
        [
            "## Scores",
            "",
            table([f"on {_scored(record)}", *columns], rows),
            "",
            f"Retention of {record['metric']}: {kept[0]}; above the majority class: {kept[1]}. One seed.",
        ]
    )


def _scored(record: Mapping[str, Any]) -> str:
    """Name the rows that a run was scored on."""
    return "training rows that were held out" if is_held_out(record) else "the validation rows"


def _score(scores: Mapping[str, float] | None, name: str) -> str:
    return _DASH if not scores or name not in scores else f"{scores[name]:.4f}"


def _retention(retained: Mapping[str, Any], name: str) -> str:
    value = retained[name]
    return f"{value:.3f}" if value is not None else f"none ({retained.get(f'{name}_reason')})"


def _sparsity_of_run(record: Mapping[str, Any]) -> str:
    reached = record["sparsity"]
    state = "gone with their layers" if "layers" in record else "zero"
    return (
        f"## Sparsity\n\n{reached['prunable']:.4f} of the prunable weights are {state} ({reached['asked']:g} was asked "
        f"for): those are the matrices of the encoder layers. Of all encoder weights it is {reached['encoder']:.4f}, "
        f"of the whole model {reached['model']:.4f}."
    )


def _sparsity_of_export(record: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    counted = f", counted {found['counted']}" if found["counted"] else ""
    asked = f"{record['sparsity']['asked']:g}"
    return (
        f"## Sparsity\n\nOf the dense model's {found['dense_prunable']:,} prunable weights, the matrices of the "
        f"encoder layers, {found['zero_or_gone']:.4f} are zero or gone ({asked} was asked for). "
        f"{found['left']:,} prunable parameters are left here, of which {found['zero_left']:,} are zero{counted}."
    )


def _size(export: Mapping[str, Any]) -> str:
    details = {name: value for name, value in export["details"].items() if isinstance(value, int | float)}
    rows = ([name.replace("_", " "), f"{value:,}"] for name, value in (export["size"] | details).items())
    return f"## Size\n\n{table(['', ''], rows)}"


def _latency_of_export(export: Mapping[str, Any]) -> str:
    rows = [
        [spoken(setting), f"{milliseconds:.2f}", f"{export['speed_up'][setting]:.2f}"]
        for setting, milliseconds in export["latency_ms"].items()
    ]
    times = table(["", "ms", "times the dense model's speed"], rows)
    where = [f"{_place(export)}, beside the dense model in one process; medians.", "", times, ""]
    return "\n".join(["## Latency", "", *(where if rows else []), str(export["sentence"])])


def _latency_of_exports(exports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say on a run's own card how fast its exports were; nothing if none was timed."""
    rows = [
        [
            name,
            spoken(setting),
            f"{found['dense_latency_ms'][setting]:.2f}",
            f"{milliseconds:.2f}",
            f"{found['speed_up'][setting]:.2f}",
            _place(found),
        ]
        for name, found in exports.items()
        for setting, milliseconds in (found.get("latency_ms") or {}).items()
    ]
    if not rows:
        return []
    times = table(["export", "", "this model, ms", "export, ms", "times this model's speed", "on"], rows)
    return [f"## Latency\n\nMedians, side by side in one process.\n\n{times}"]


def place_of(device: str, threads: int | None) -> str:
    """Name what something was timed on, e.g. ``some CPU, 2 threads``; leave out what is not known."""
    counted = "" if threads is None else "1 thread" if threads == 1 else f"{threads} threads"
    return ", ".join(part for part in (device, counted) if part)


def spoken(setting: str) -> str:
    """Write a shape of input for people: ``batch=1,tokens=32`` is ``batch 1, tokens 32``."""
    return setting.replace(",", ", ").replace("=", " ")


def _place(timed: Mapping[str, Any]) -> str:
    return place_of(str(timed["device"]), timed.get("threads"))


def _asked(record: Mapping[str, Any]) -> str:
    return asked(record.get("asks"), max_length=record["config"]["max_length"], of="model")


def _loading(lines: str, on_hub: OnHub | None, *, is_stock: bool) -> str:
    where = "Beside this folder"
    if on_hub is not None:
        made = f"Beside the folder that `hf download {on_hub.repository} --local-dir {on_hub.name}` makes"
        where = "From the Hub" if is_stock else made
    return f"## Load\n\n{where}:\n\n```python\n{lines}\n```"


def _licences(on_hub: OnHub | None) -> list[str]:
    """Say on the Hub under which licence the model is, and whose it is made of; a folder's card does not know."""
    if on_hub is None:
        return []
    return [
        f"## Licence\n\nOf this model: {on_hub.licence}. Of the pre-trained model, from its own card: "
        f"{on_hub.base_licence}."
    ]


def _data(record: Mapping[str, Any], terms: str) -> str:
    return f"## Data\n\n{record['data']['source']}, fingerprint {record['data']['fingerprint']}. Terms: {terms}."


def _limits(record: Mapping[str, Any]) -> list[str]:
    rows = ", ".join(f"{n:,} {split}" for split, n in record["data"]["n_rows"].items())
    return [f"Fine-tuned and scored on these rows only: {rows}.", *record.get("warnings", [])]


def _listed(title: str, items: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {item}" for item in items)])


__all__ = ["CARD", "CARD_KEYS", "place_of", "record_of_level", "spoken", "write_card", "write_export_card"]
