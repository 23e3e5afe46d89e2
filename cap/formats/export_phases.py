"""The phases of ``python -m cap.export``: read a run, write it in a format, check and measure what was written."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cap.base.console import print_table
from cap.base.errors import InputError, RunError
from cap.base.files import atomic_folder, real_folder, write_json
from cap.base.kinds import KINDS
from cap.config.export import EVERY_FORMAT, ExportConfig
from cap.formats.cost import count_cost
from cap.formats.export_formats import FORMATS, Format, Written, auto_class, how_to_load
from cap.formats.export_source import Source, read_source
from cap.formats.exports import export_name, export_table, in_words, note_in_run, timing
from cap.formats.latency import LENGTHS, paired_latency
from cap.formats.parity import LogitsModel, LogitsOf, largest_difference, logits_of
from cap.models.encoders import weights_key
from cap.models.families import longest_input, prunable_linears
from cap.models.sentence_files import write_sentence_files
from cap.pruning.masks import count_matrix_zeros, count_zeros
from cap.runs.card import write_export_card
from cap.runs.environment import environment
from cap.runs.finished import FinishedRun, read_runs
from cap.runs.folder import EXPORT, require_empty
from cap.runs.record import retention
from cap.training.predict import predict

log = logging.getLogger("cap.export")

_WEIGHTS = ("*.safetensors", "*.onnx")


def find_run(folder: Path) -> FinishedRun:
    """Read the record of the run that is exported.

    Raises:
        InputError: If the folder holds no finished run.
    """
    (run,) = read_runs([folder])
    return run


def free_target(config: ExportConfig, run: FinishedRun) -> Path:
    """Name the folder that is written.

    Raises:
        InputError: If it holds anything.
    """
    target = Path(config.output_dir or Path("outputs") / "exports" / f"{run.name.replace('/', '-')}-{_name(config)}")
    require_empty(target)
    return real_folder(target)


def _name(config: ExportConfig) -> str:
    return export_name(config.format, None if config.vocabulary is None else config.vocabulary_rest, sign="-")


def read_suitable(run: FinishedRun, config: ExportConfig) -> Source:
    """Load a run's model and rows, as far as the format can be made of them; of all formats some may not.

    Raises:
        InputError: If it cannot, or something of the run cannot be read.
    """
    source = read_source(run, config)
    if config.format != EVERY_FORMAT:
        FORMATS[config.format].require(source)
    return source


def write_checked(source: Source, config: ExportConfig, target: Path, *, command: str) -> dict[str, Any]:
    """Write the export, check and measure it, and give it a card; whole or not at all.

    Args:
        source: The run's model and rows.
        config: The format, and how it is measured.
        target: The folder.
        command: What was typed.

    Returns:
        What was measured, see ``cap.formats.exports``.

    Raises:
        InputError: If the format needs the run's own rows, and these are others.
        RunError: If the export does not give the run's logits.
    """
    chosen = FORMATS[config.format]
    notes = _check_rows(source, config.format, chosen)
    with atomic_folder(target) as temporary:
        written = chosen.write(source, temporary)
        if source.smaller is not None:
            source.smaller.write_rules(temporary)
        if source.is_of_encodings:
            dim = int(source.model.config.hidden_size)
            write_sentence_files(temporary, pooling=source.pooling, dim=dim, max_length=source.max_length)
        result = _result(source, config, chosen, written, temporary, notes, command=command)
        write_json(temporary / EXPORT, result)
        write_export_card(temporary, source.run.record, result, name=target.name, terms=source.terms)
    return result


def tell(source: Source, result: dict[str, Any], target: Path) -> None:
    """Note the export in its run, and show what was measured."""
    note_in_run(source.run, result, auto_class=auto_class(source), terms=source.terms)
    for note in result["notes"]:
        log.warning(note)
    print_table(export_table(result, target))
    log.info(result["sentence"])


def _result(
    source: Source,
    config: ExportConfig,
    chosen: Format,
    written: Written,
    folder: Path,
    notes: list[str],
    *,
    command: str,
) -> dict[str, Any]:
    """Check and measure what was written, see ``cap.formats.exports``."""
    notes += written.notes
    loaded = chosen.load(folder)
    rows = source.rows
    result = {
        "format": config.format,
        "command": command,
        "run": source.run.record["config_hash"],
        "reads": {"max_length": source.max_length, "stride": source.stride},
        "environment": environment(on_gpu=config.format == "semi_structured"),  # all others are checked on the CPU
        "data": {
            "source": rows.source,
            "fingerprint": rows.fingerprint,
            "is_the_runs": source.has_rows_of_run,
        },
        "vocabulary": None if source.vocabulary is None else {**source.vocabulary.for_record(), **source.cost},
        "check": _check(source, loaded, config.format, chosen),
        **_scores_again(source, loaded, chosen, notes),
        "details": written.details,
        "sparsity": {**_sparsity(source, written.model), "counted": chosen.counted},
        **_sizes(source, folder, written.model),
        **_timed(source, loaded, chosen, config, notes),
        "notes": notes,
        "loads_with_transformers": chosen.loads_with_transformers,
        "how_to_load": how_to_load(source, chosen),
    }
    result["sentence"] = in_words(
        result, no_gain=chosen.no_gain, is_dense_again=chosen.is_dense_again, runtime=chosen.runtime
    )
    return result


def _check_rows(source: Source, name: str, chosen: Format) -> list[str]:
    """Refuse to score on other rows than the run's, and note where logits are compared on others."""
    if source.has_rows_of_run:
        return []
    given, wanted = source.rows, source.run.record["data"]
    others = f"{given.source}, fingerprint {given.fingerprint}, not {wanted['source']}, {wanted['fingerprint']}"
    if _is_scored(source, chosen):
        what, instead = (
            (f"format={name}", "choose a format that keeps the logits (compact, sparse, onnx)")
            if source.vocabulary is None
            else ("another vocabulary", "leave vocabulary out")
        )
        raise InputError(
            f"{what} changes the logits, so its scores are measured again, on the rows of the run; got {others}; "
            f"give data_dir=DIR with the run's rows, or {instead}"
        )
    return [f"The logits were compared on other rows than the run's: {others}."]


def _is_scored(source: Source, chosen: Format) -> bool:
    """Say whether scores are measured again: where logits are others, or texts are read in other pieces."""
    return chosen.tolerance is None or source.vocabulary is not None


def _logits(source: Source, loaded: Any) -> LogitsOf:
    return logits_of(loaded, pooling=source.pooling) if isinstance(loaded, PreTrainedModel) else loaded


def _check(source: Source, loaded: Any, name: str, chosen: Format) -> dict[str, Any]:
    of_run = _logits(source, source.dense)
    difference = largest_difference(
        _logits(source, loaded), lambda batch: of_run(source.as_in_run(batch)), source.batches
    )
    limit = chosen.tolerance
    if not math.isfinite(difference.absolute) or (limit is not None and difference.relative > limit):
        wanted = "finite logits" if limit is None else f"the run's logits within {limit:g} of the largest one, or of 1"
        raise RunError(
            f"format={name} must give {wanted}, but on {source.n_checked} rows they are up to "
            f"{difference.absolute:.3g} apart; nothing was kept"
        )
    if chosen.is_bit_identical and weights_key(loaded) != weights_key(source.model):
        raise RunError(f"format={name} must give every weight back bit by bit, but some differ; nothing was kept")
    return {
        "rows": source.n_checked,
        "largest_difference": difference.absolute,
        "relative_difference": difference.relative,
        "tolerance": limit,
        "is_bit_identical": True if chosen.is_bit_identical else None,
    }


def _scores_again(source: Source, loaded: Any, chosen: Format, notes: list[str]) -> dict[str, Any]:
    record = source.run.record
    before = {"scores_of_run": record["scores"]["pruned"]}
    if not _is_scored(source, chosen):
        return {**before, "scores": None, "retention": None}
    order, remarks = source.output_order()
    notes.extend(remarks)
    scores, _ = predict(
        LogitsModel(_logits(source, loaded)),
        source.data.eval_dataloaders(),
        source.data.metrics(),
        device=torch.device("cpu"),
        description="the export's score",
        order=order,
    )
    metric, others = record["metric"], record["scores"]
    teacher = (others.get("teacher") or {}).get(metric)
    majority = (others.get("majority") or {}).get(metric) if KINDS[source.task.kind].has_majority else None
    return {**before, "scores": scores, "retention": retention(scores[metric], teacher, majority)}


def _sparsity(source: Source, left: PreTrainedModel) -> dict[str, Any]:
    n_dense = sum(n for _, n in count_matrix_zeros(source.model).values())  # layers that training took out, too
    counts = count_zeros(prunable_linears(left)).values()
    n_left, n_zero = sum(n for _, n in counts), sum(zeros for zeros, _ in counts)
    gone = (n_dense - n_left + n_zero) / n_dense
    return {"dense_prunable": n_dense, "left": n_left, "zero_left": n_zero, "zero_or_gone": gone}


def _sizes(source: Source, folder: Path, smaller: PreTrainedModel) -> dict[str, Any]:
    cost, dense = (count_cost(model, tokens=128) for model in (smaller, source.beside))
    n_bytes = sum(path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern))
    size = {
        "bytes": n_bytes,
        "dense_bytes": source.dense_bytes,
        "dense_bytes_gzipped": source.dense_bytes_gzipped,
        "parameters": cost.parameters,
        "dense_parameters": dense.parameters,
        "prunable_parameters": cost.prunable_parameters,
        "dense_prunable_parameters": dense.prunable_parameters,
        "multiply_adds_of_128_tokens": cost.multiply_adds,
        "dense_multiply_adds_of_128_tokens": dense.multiply_adds,
    }
    return {"size": size, "bytes": n_bytes}


def _timed(source: Source, loaded: Any, chosen: Format, config: ExportConfig, notes: list[str]) -> dict[str, Any]:
    models, device = {"dense": source.beside, "export": loaded}, torch.device("cpu")
    if config.latency_seconds == 0:
        return timing([], device)
    if chosen.beside is not None:
        models, device = chosen.beside(source, loaded)
    longest = longest_input(source.model.config)
    lengths = [length for length in LENGTHS if longest is None or length <= longest]
    if len(lengths) < len(LENGTHS):
        notes.append(f"Latency was measured up to {longest} tokens only, which are the most that the model reads.")
    measured = paired_latency(
        models,
        reference="dense",
        vocabulary_size=source.model.config.vocab_size,
        lengths=lengths,
        budget_seconds=config.latency_seconds,
        device=device,
    )
    return timing(measured, device)


__all__ = ["find_run", "free_target", "read_suitable", "tell", "write_checked"]
