"""The model card: what a saved model is, how it was made, what it scores, how to load it, and what it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cap.storage import atomic_file

CARD = "README.md"
_LOAD_STOCK = """from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""
_LOAD_OURS = """import cap
from transformers import AutoTokenizer

model, tokenizer = cap.load("{folder}"), AutoTokenizer.from_pretrained("{folder}")"""


def write_card(folder: Path, record: Mapping[str, Any], *, auto_class: str, terms: str) -> None:
    """Write the card of a run's model.

    Args:
        folder: The model's folder.
        record: Of the run, see ``cap.results.record``.
        auto_class: The class of transformers that loads it.
        terms: Under which the data may be used.
    """
    load = _LOAD_STOCK.format(auto_class=auto_class, folder=folder.name)
    limits = [
        "Zeros take part in every product: this folder is as large and as slow as the dense model. "
        "`python -m cap.export` makes it smaller.",
        *_limits(record),
    ]
    _write(folder, record, load=load, sections=[], limits=limits, terms=terms)


def write_export_card(
    folder: Path, record: Mapping[str, Any], export: Mapping[str, Any], *, name: str, terms: str
) -> None:
    """Write the card of an exported model.

    Args:
        folder: The exported folder.
        record: Of the run that it was made of.
        export: What the export measured, see ``export.json``.
        name: What the folder will be called.
        terms: Under which the data may be used.
    """
    load = (_LOAD_OURS if export["loads_with_cap"] else str(export["how_to_load"])).format(folder=name)
    size = [f"| {name.replace('_', ' ')} | {value:,} |" for name, value in export["size"].items()]
    latency = [
        f"| {setting.replace(',', ', ').replace('=', ' ')} | {milliseconds:.2f} | {export['speed_up'][setting]:.2f} |"
        for setting, milliseconds in export["latency_ms"].items()
    ]
    sections = [
        "\n".join(["## Size", "", "| | |", "| --- | --- |", *size]),
        "\n".join(
            [
                "## Latency",
                "",
                f"{export['device']}, {export['threads']} threads, beside the dense model in one process; medians.",
                "",
                "| | ms | times the dense model's speed |",
                "| --- | --- | --- |",
                *latency,
                "",
                str(export["sentence"]),
            ]
        ),
    ]
    _write(folder, record, load=load, sections=sections, limits=_limits(record), terms=terms)


def _write(
    folder: Path, record: Mapping[str, Any], *, load: str, sections: list[str], limits: list[str], terms: str
) -> None:
    config = record["config"]
    parts = [
        _front_matter(record),
        f"# {record['model']}, pruned to {record['sparsity']['prunable']:.4f} on {config['task']['name']}",
        f"Made by cap ({config['pruning']['name']} pruning) with\n\n```\n{record['command']}\n```\n\n"
        f"seed {record['seed']}, commit {record['environment'].get('git_commit') or 'unknown'}.",
        _scores(record),
        _sparsity(record),
        *sections,
        f"## Load\n\nBeside this folder:\n\n```python\n{load}\n```",
        f"## Data\n\n{record['data']['source']}, fingerprint {record['data']['fingerprint']}. Terms: {terms}.",
        "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)]),
    ]
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front_matter(record: Mapping[str, Any]) -> str:
    tags = ["pruning", "sparsity", record["config"]["pruning"]["name"]]
    return "\n".join(["---", "library_name: transformers", "tags:", *(f"- {tag}" for tag in tags), "---"])


def _scores(record: Mapping[str, Any]) -> str:
    scores = record["scores"]
    rows = [
        f"| {name} | {_score(scores.get('teacher'), name)} | {value:.4f} | {_score(scores.get('majority'), name)} |"
        for name, value in scores["pruned"].items()
    ]
    kept = _retention(record, "retention"), _retention(record, "retention_above_majority")
    return "\n".join(
        [
            "## Scores",
            "",
            "| on the validation rows | dense teacher | this model | learned nothing |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"Retention of {record['metric']}: {kept[0]}; above the majority class: {kept[1]}. One seed.",
        ]
    )


def _score(scores: Mapping[str, float] | None, name: str) -> str:
    return "\N{EN DASH}" if not scores or name not in scores else f"{scores[name]:.4f}"


def _retention(record: Mapping[str, Any], name: str) -> str:
    value = record[name]
    return f"{value:.3f}" if value is not None else f"none ({record[f'{name}_reason']})"


def _sparsity(record: Mapping[str, Any]) -> str:
    reached = record["sparsity"]
    return (
        f"## Sparsity\n\n{reached['prunable']:.4f} of the prunable weights are zero ({reached['asked']:g} was asked "
        f"for): those are the matrices of the encoder layers. Of all encoder weights it is {reached['encoder']:.4f}, "
        f"of the whole model {reached['model']:.4f}."
    )


def _limits(record: Mapping[str, Any]) -> list[str]:
    rows = ", ".join(f"{n:,} {split}" for split, n in record["data"]["n_rows"].items())
    return [f"Fine-tuned and scored on these rows only: {rows}.", *record.get("warnings", [])]


__all__ = ["CARD", "write_card", "write_export_card"]
