"""What an export measured: as numbers, in words, as a table, and as a note in the record of its run.

``export.json`` in an exported folder is an object with the keys below; those marked * are noted in the run's record,
too, under ``exports`` and the format's name.

============================  ==========================================================================================
``format``, ``command``       what was asked for, and what was typed
``run``                       the run's configuration hash
``reads``                     ``max_length`` and ``stride`` of the run: how rows are given to the model
``environment``               see ``cap.runs.environment``
``data``                      ``source`` and ``fingerprint`` of the rows it was checked on; ``is_the_runs``: true if
                              they are the run's own
``vocabulary`` *              ``corpus`` that decided which pieces stay; ``rows`` of the word embedding that are left;
                              ``dense_rows`` of before; pieces ``used`` there; ``validation_tokens`` of the run's model,
                              ``changed_tokens`` of these, and as a fraction ``changed``; what became of the ``rest``,
                              see ``cap.config.export.RESTS``; null where no row went
``check`` *                   ``rows``; ``largest_difference`` of logits; ``relative_difference``, as a fraction of
                              the largest logit, or of 1 where all are smaller; ``tolerance`` of the latter, null
                              where scores are measured again instead; ``is_bit_identical``: true, null if not asked
``scores`` *                  measured again, on the run's own validation rows; null where the logits are the run's
``scores_of_run``             those of the run's model
``retention`` *               with them, see ``cap.runs.record.retention``; null without
``sparsity`` *                ``dense_prunable``, ``left``: prunable weights; ``zero_left`` of them; ``zero_or_gone``, a
                              fraction of the dense model's; ``counted``: when, or null
``size`` *, ``bytes`` *       see ``cap.formats.cost``, in bytes on disk, of this and of the dense model
``details`` *                 ``heads`` and ``ffn``: units left, and (not in the record) ``removed`` ones by layer; or
                              ``encoder_bytes``, ``bound_bytes`` (one bit per prunable weight plus the kept weights) and
                              their ratio ``times_the_bound``; or ``masks_bytes`` and ``trained_bytes`` of the two
                              files, and ``mask_bits_per_weight``, of the first one
``latency_ms`` *              by shape of input, medians; ``dense_latency_ms`` * beside it
``speed_up`` *                median of the ratios dense / export of every round; ``speed_up_quartiles`` *: first and
                              third; ``rounds`` *: how many
``device`` *, ``threads`` *   what the latency was measured on; ``threads`` is null on a GPU
``notes``                     sentences that a reader of the result must know
``loads_with_transformers``   true if transformers alone loads the folder
``how_to_load``               lines that do, null where ``cap.load`` does
``sentence``                  what was gained
============================  ==========================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cap.base.errors import InputError
from cap.base.files import read_json
from cap.config.export import NEAREST, SPLIT
from cap.formats.latency import Latency
from cap.runs.card import spoken, write_card
from cap.runs.environment import device_name
from cap.runs.finished import FinishedRun
from cap.runs.folder import MODEL, RECORD, hold
from cap.runs.record import write_record

_SHARED = (
    ", since they share the row that is nearest to their own. Load tokenizer.json in each process and copy the file as "
    "it is: save_pretrained, pickle and deepcopy keep one piece a row, and lose all others that share it."
)
_MEASURED = ("bytes", "vocabulary", "check", "scores", "retention", "sparsity", "size")
_TIMED = (
    "latency_ms",
    "dense_latency_ms",
    "speed_up",
    "speed_up_quartiles",
    "rounds",
    "device",
    "threads",
)
log = logging.getLogger(__name__)


def timing(measured: Sequence[Latency], device: torch.device) -> dict[str, Any]:
    """Put what ``paired_latency`` measured of ``dense`` and ``export`` on a device into the keys of the result."""
    found = {f"batch={one.batch_size},tokens={one.length}": one for one in measured}
    speed_up = {setting: one.models["export"].speed_up for setting, one in found.items()}
    return {
        "latency_ms": {name: round(one.models["export"].milliseconds.median, 4) for name, one in found.items()},
        "dense_latency_ms": {name: round(one.models["dense"].milliseconds.median, 4) for name, one in found.items()},
        "speed_up": {name: round(ratios.median, 4) for name, ratios in speed_up.items()},
        "speed_up_quartiles": {
            name: [round(ratios.first, 4), round(ratios.third, 4)] for name, ratios in speed_up.items()
        },
        "rounds": {name: one.n_rounds for name, one in found.items()},
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }


def in_words(
    result: Mapping[str, Any], *, no_gain: str | None, is_dense_again: bool, runtime: str | None = None
) -> str:
    """Say in words what was gained, above all where nothing was.

    A shape of input counts as faster if three of four rounds were: a median a little above 1 may be chance.

    Args:
        result: What the module's description lists.
        no_gain: Why a shape of input may be no faster; None derives it from the zeros that are left.
        is_dense_again: True if nothing can be faster, because what is loaded is the dense model.
        runtime: What runs it, if that is not torch, which runs the dense model.
    """
    saved = 1 - result["size"]["bytes"] / result["size"]["dense_bytes"]
    size = f"The weights take {abs(saved):.0%} {'less' if saved >= 0 else 'more'} space on disk than the dense model's"
    if is_dense_again:
        said = f"{size}; once loaded it is the dense model again, zeros and all, and no faster."
    elif not result["speed_up"]:
        said = f"{size}; latency was not measured."
    else:
        said = f"{size}, {_speed(result, no_gain or _why_zeros_gain_nothing(result))}."
        if runtime is not None:
            said += f" It runs in {runtime}, the dense model in torch: part of the difference is that."
    if result["vocabulary"] is not None:
        said += f" {_vocabulary_in_words(result['vocabulary'])}"
    return f"{said} {_scores_in_words(result['scores_of_run'], result['scores'])}" if result["scores"] else said


def _speed(result: Mapping[str, Any], no_gain: str) -> str:
    faster = [name for name, (first, _) in result["speed_up_quartiles"].items() if first > 1]
    others = [name for name in result["speed_up"] if name not in faster]
    gained = f"a call runs at {_range(result, faster)} its speed" if faster else ""
    if not others:
        return f"and {gained}"
    lost = f"it is not faster at {_named(others)} ({_range(result, others)}): {no_gain}"
    return f"and {gained} at {_named(faster)}, but {lost}" if faster else f"but {lost}"


def _range(result: Mapping[str, Any], names: Sequence[str]) -> str:
    least, most = (f"{choose(result['speed_up'][name] for name in names):.2f}" for choose in (min, max))
    return f"{least} times" if least == most else f"{least} to {most} times"


def _named(settings: Sequence[str]) -> str:
    return "; ".join(spoken(setting) for setting in settings)


def _why_zeros_gain_nothing(result: Mapping[str, Any]) -> str:
    if result["sparsity"]["zero_left"]:
        return "zeros inside the units that are left cost as much as any weight"
    return "the units that are gone are too small a part of such a call"


def _vocabulary_in_words(kept: Mapping[str, Any]) -> str:
    return (
        f"Of the {kept['dense_rows']:,} rows of the word embedding {kept['rows']:,} are left, of which "
        f"{kept['used']:,} are used in {kept['corpus']}; {kept['changed']:.2%} of the {kept['validation_tokens']:,} "
        f"validation tokens changed{_SHARED if kept['rest'] == NEAREST else '.'}"
    )


def _scores_in_words(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    changes = [f"{name} {before[name]:.4f} before the export, {after[name]:.4f} after it" for name in after]
    return f"Scores: {'; '.join(changes)}."


def export_table(result: Mapping[str, Any], folder: Path) -> Table:
    """Build the few numbers that end an export in the terminal."""
    size, check = result["size"], result["check"]
    caption = f"largest difference of logits {check['largest_difference']:.3g} on {check['rows']} rows; {folder}"
    table = Table("", "dense", result["format"], caption=caption)
    for name, score in (result["scores"] or {}).items():
        table.add_row(name, f"{result['scores_of_run'][name]:.4f}", f"{score:.4f}")
    table.add_row("MB on disk", f"{size['dense_bytes'] / 1e6:.1f}", f"{size['bytes'] / 1e6:.1f}")
    table.add_row("MB, gzipped", f"{size['dense_bytes_gzipped'] / 1e6:.1f}", "")
    for name, value in result["details"].items():
        if isinstance(value, int | float):
            table.add_row(name.replace("_", " "), "", f"{value:,}")
    for name in ("parameters", "prunable_parameters", "multiply_adds_of_128_tokens"):
        table.add_row(name.replace("_", " "), f"{size[f'dense_{name}']:,}", f"{size[name]:,}")
    if result["vocabulary"] is not None:
        kept = result["vocabulary"]
        table.add_row("rows of the word embedding", f"{kept['dense_rows']:,}", f"{kept['rows']:,}")
        table.add_row("validation tokens that changed", "", f"{kept['changed']:.2%}")
    for setting, milliseconds in result["latency_ms"].items():
        found = f"{milliseconds:.2f} ({result['speed_up'][setting]:.2f} x)"
        table.add_row(f"ms, {spoken(setting)}", f"{result['dense_latency_ms'][setting]:.2f}", found)
    return table


def note_in_run(run: FinishedRun, result: Mapping[str, Any], *, auto_class: str, terms: str) -> None:
    """Add what was measured to the run's record, where tables and pictures find it, and to its model's card.

    The record is read again, with every other process kept out: another export may have been noted since. What cannot
    be noted is a warning, since the export itself is whole.

    Args:
        run: As it was when the export began.
        result: What the module's description lists.
        auto_class: The class of transformers that loads the run's model.
        terms: Under which the data may be used.
    """
    try:
        lock = hold(run.folder)
    except (InputError, OSError) as error:
        return _warn(run, error)
    try:
        record = read_json(run.folder / RECORD)
        if any(record.get(key) != run.record[key] for key in ("config_hash", "status")):
            return _warn(run, "its folder holds another run by now")
        record["exports"] = _with(record.get("exports") or {}, result)
        write_record(run.folder, record)
        write_card(run.folder / MODEL, record, auto_class=auto_class, terms=terms)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        return _warn(run, error)
    finally:
        lock.release()
    return None


def _with(exports: Mapping[str, Mapping[str, Any]], result: Mapping[str, Any]) -> dict[str, Any]:
    kept = result["vocabulary"]
    name = export_name(result["format"], None if kept is None else kept["rest"], sign="+")
    # A latency that was measured once is worth more than the news that this time none was.
    earlier = exports.get(name, {})
    is_known = earlier.get("latency_ms") and earlier.get("vocabulary") == kept
    timed = earlier if is_known and not result["latency_ms"] else result
    details = {key: _without_numbers_of_units(value) for key, value in result["details"].items()}
    measured = {key: result[key] for key in _MEASURED}
    return {**exports, name: {**measured, "details": details, **{key: timed[key] for key in _TIMED if key in timed}}}


def export_name(format_name: str, rest: str | None, *, sign: str) -> str:
    """Name an export by its format and by what became of pieces without a row; None where all have one."""
    added = {None: "", SPLIT: f"{sign}vocabulary"}.get(rest, f"{sign}vocabulary-{rest}")
    return f"{format_name}{added}"


def _without_numbers_of_units(detail: Any) -> Any:
    return {key: value for key, value in detail.items() if key != "removed"} if isinstance(detail, dict) else detail


def _warn(run: FinishedRun, reason: object) -> None:
    log.warning("the export is whole, but could not be noted in the record of run %s: %s", run.name, reason)


__all__ = ["export_name", "export_table", "in_words", "note_in_run", "timing"]
