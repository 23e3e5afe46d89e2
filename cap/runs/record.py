"""The one JSON file that says what a run was, what it reached and what it cost.

``record.json`` is an object with the keys below. A run that did not complete leaves out, or sets to null, what it does
not know. Scores, sparsities and retentions are fractions; nothing is ever NaN or infinite.

=================================  =====================================================================================
``status``, ``error``              ``completed``, ``interrupted`` or ``failed``; one line that says why, or null
``command``                        what was typed
``config``, ``config_hash``        the resolved configuration and its content key
``environment``                    see ``cap.runs.environment``
``seed``                           the seed of everything random
``data``                           ``source``, ``fingerprint``, ``n_rows`` by split: ``{"train": n, ...}``;
                                   ``unlabelled``, if there are rows without a label: their ``source`` and
                                   ``fingerprint``, and how many were left out since training has their texts
                                   (``n_repeated``) or validation rows have (``n_validated``);
                                   ``files``: SHA-256 by name of the files of a ``data_dir``
``model``, ``pooling``             where the pre-trained model comes from; how every encoding of the run is pooled:
                                   ``pooler``, ``first_token`` or ``mean``
``weights_sha256``                 of the ``model`` and of a given ``teacher``: SHA-256 by name of their files
``metric``                         the task's first metric, which retention is computed on
``asks``                           ``kind`` of the answers, see ``cap.base.kinds``, and ``columns`` of the texts; of
                                   words ``between``: what their tokenizer wants before each but the first
``scores``                         ``majority``, ``teacher``, ``pruned``: each ``{metric: x}``, or null (no teacher)
``levels``                         list of ``{"step", "target", "sparsity", "scores": {metric: x}, "share",
                                   "precision"}``: validations, ends of levels, and the end of the run; each of a share
                                   of the rows in a precision, the end of all rows in float32
``teacher``                        its ``name``, and ``was_cached``: made by an earlier run; of classes ``certainty``,
                                   the mean probability of its answers to training rows, and ``certainty_softened``,
                                   the same at the temperature of distillation
``retention``                      pruned / teacher, or null; ``retention_reason`` then says why
``retention_above_majority``       (pruned - majority) / (teacher - majority), or null with its ``..._reason``
``sparsity``                       ``asked``, and reached, as a fraction of ``prunable``, ``encoder``, ``model`` weights
``matrices``                       ``{name: [n_pruned, n]}`` for every prunable matrix, layer by layer in the order of
                                   use; named like the module, with a word behind it where that holds several
``matrix_kinds``                   what each of them is, by the same names: ``query``, ``FFN in``, ...
``units``                          ``heads`` and ``ffn``: by layer ``[n_pruned, n]``, units with no outgoing
                                   weight but zeros
``layers``                         where encoder layers are gone: the numbers ``kept`` of the dense model's ``n_dense``;
                                   all counts above are those of the dense model, with zeros for what is gone
``dynamics``                       what was known before training, see ``cap.training.dynamics``, and
                                   ``minutes_estimated`` for the steps, from the first ten, or null
``gradient_shares``                by loss term: the norm of its gradient with respect to the encoder layers, over that
                                   of ``kd``, or of ``ce`` where there is no distillation, on the first batches of
                                   training (from half of the sparsity on where the student starts from the teacher;
                                   for terms of snapshots once the student has gone on from the first one); absent
                                   where there is one term alone
``steps``, ``seconds_per_step``    optimizer steps of the run, and the median time of one
``seconds``                        by phase: ``data``, ``teacher``, ``encode``, ``fit``, ``importance``,
                                   ``snapshots`` and ``gradients`` (during the fit, not counted in it), ``evaluate``,
                                   ``total``; over all attempts, but for a phase that an attempt did not end
``peak_memory_gb``                 see ``cap.runs.environment``
``resumed_at``                     optimizer steps at which an interrupted run went on; absent if it never did
``wandb_id``                       of the W&B run, which a resumed run continues
``kept``                           for ``keep_levels``: list of ``{"step", "sparsity", "scores", "folder",
                                   "is_retrained"}``, the last false where no step was trained at that sparsity
``exports``                        by format, what ``cap.export`` measured afterwards, see ``cap.formats.exports``
``warnings``                       list of sentences that a reader of the result must know
=================================  =====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cap.base.files import write_json


def retention(pruned: float | None, teacher: float | None, majority: float | None) -> dict[str, float | str | None]:
    """Say how much of the teacher's score the pruned model keeps, and of its lead over guessing.

    Args:
        pruned: Score of the pruned model; None if it was not evaluated.
        teacher: Score of the teacher on the same rows; None if the run had none.
        majority: Score of always answering the most frequent class; None if the task has no classes.

    Returns:
        ``retention`` and ``retention_above_majority`` as fractions, each None where it has no meaning, and the
        reason for that under the same name with ``_reason`` behind it (None where there is a number).
    """
    reason = _unusable("pruned model", pruned) or _unusable("teacher", teacher)
    ratio = above = None
    ratio_reason = above_reason = reason
    if pruned is not None and teacher is not None and reason is None:
        above_reason = _unusable("majority class", majority)
        is_idle = majority is not None and above_reason is None and teacher <= majority
        if is_idle:  # a student that guesses would keep all of it
            ratio_reason = above_reason = (
                f"The teacher ({teacher:.4g}) does not beat the majority class ({majority:.4g}): nothing to retain."
            )
        elif majority is not None and above_reason is None:
            above = (pruned - majority) / (teacher - majority)
        if teacher <= 0:
            ratio_reason = (
                f"The teacher's score is {teacher:.4g}: a ratio to a score that is not positive says nothing."
            )
        elif not is_idle:
            ratio = pruned / teacher
    return {
        "retention": ratio,
        "retention_reason": ratio_reason,
        "retention_above_majority": above,
        "retention_above_majority_reason": above_reason,
    }


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Write ``record.json`` whole or not at all.

    Args:
        run_dir: The run's folder.
        record: What the module's description lists.

    Raises:
        ValueError: If a value is NaN, infinite or not one of JSON's types; the message names every such key.
    """
    problems = list(_problems(record, ""))
    if problems:
        raise ValueError(
            f"record.json holds JSON's own types and finite numbers, got {'; '.join(problems)}; "
            "store None where a value has no meaning"
        )
    write_json(run_dir / "record.json", record)


def _problems(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{path or 'record'} has the key {key!r}, which is no string"
            yield from _problems(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _problems(item, f"{path}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{path} = {float(value)}"
    elif value is not None and not isinstance(value, str | int):
        yield f"{path} of type {type(value).__name__}"


def _unusable(whose: str, score: float | None) -> str | None:
    if score is None:
        return "There is no teacher." if whose == "teacher" else f"There is no score of the {whose}."
    return None if math.isfinite(score) else f"The score of the {whose} is not a finite number."


__all__ = ["retention", "write_record"]
