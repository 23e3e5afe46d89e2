"""The formats of ``cap.export``: how each is written, loaded and timed, and what it must keep."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cap.base.errors import InputError
from cap.formats.compact import Compacted, save_compact
from cap.formats.export_source import Source
from cap.formats.load import load
from cap.formats.masks import MASKS_FILE, TRAINED_FILE, base_of, save_masks
from cap.formats.onnx import ONNX_FILE, OnnxModel, quantise_onnx, require_onnx
from cap.formats.parity import logits_of
from cap.formats.sparse import ENCODER_FILE, save_sparse
from cap.models.encoders import AUTO_CLASS, save_model
from cap.models.families import prunable_linears
from cap.models.pooling import sentence_pooling
from cap.models.semi_structured import require_sparse_gpu, to_semi_structured
from cap.models.sources import ModelSource
from cap.pruning.masks import count_zeros
from cap.pruning.patterns import PATTERNS, follows_pattern
from cap.runs.asking import asked
from cap.runs.finished import require_keys
from cap.runs.folder import MODEL
from cap.training.preparation import asks_of

log = logging.getLogger("cap.export")

_PATTERN = "2:4"
_BYTES_PER_WEIGHT = 4


@dataclass(frozen=True)
class Written:
    """Hold what a format says of what it wrote.

    Args:
        model: The torch model whose parameters and multiply-adds are those of the export.
        details: For the record, see ``cap.formats.exports``.
        notes: What a reader of the result must know.
    """

    model: PreTrainedModel
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """Describe a format.

    Args:
        write: Writes the export into a folder.
        load: Loads what was written: a torch model, or what gives the logits of a batch.
        tolerance: How far its logits may be from the run's, as a fraction of the largest logit, or of 1 where all are
            smaller; None where they are others, so that scores are measured again.
        is_bit_identical: True if every weight must come back bit by bit.
        is_dense_again: True if what is loaded is the dense model, so that nothing can be faster.
        runtime: What runs it, if that is not torch.
        loads_with_transformers: True if transformers alone loads it.
        how_to_load: Lines for people; None if ``cap.load`` does it.
        require: Checks beforehand whether the format is possible at all.
        beside: Gives what is timed, the dense model first, and where; None times on the CPU.
        no_gain: Why it may be no faster; None where that follows from the zeros that are left.
        counted: When the zeros that are left were counted, if something happens to them later.
    """

    write: Callable[[Source, Path], Written]
    load: Callable[[Path], Any]
    tolerance: float | None
    is_bit_identical: bool = False
    is_dense_again: bool = False
    runtime: str | None = None
    loads_with_transformers: bool = False
    how_to_load: Callable[[Source], str] | None = None
    require: Callable[[Source], None] = lambda source: None
    beside: Callable[[Source, Any], tuple[dict[str, Any], torch.device]] | None = None
    no_gain: str | None = None
    counted: str | None = None


def _write_compact(source: Source, folder: Path) -> Written:
    compacted = source.compacted
    save_compact(compacted.model, source.tokenizer, folder)
    _say_what_went(compacted)
    return Written(compacted.model, compacted.for_record())


def _write_sparse(source: Source, folder: Path) -> Written:
    save_sparse(source.model, source.tokenizer, folder)
    counts = count_zeros(prunable_linears(source.model)).values()
    n_prunable, n_kept = sum(n for _, n in counts), sum(n - zeros for zeros, n in counts)
    n_bytes, bound = (folder / ENCODER_FILE).stat().st_size, -(-n_prunable // 8) + _BYTES_PER_WEIGHT * n_kept
    sizes = {"encoder_bytes": n_bytes, "bound_bytes": bound, "times_the_bound": round(n_bytes / bound, 4)}
    return Written(source.model, sizes)


def _write_masks(source: Source, folder: Path) -> Written:
    save_masks(source.model, source.tokenizer, folder, settings=source.run.record["config"]["model"])
    n_prunable = sum(n for _, n in count_zeros(prunable_linears(source.model)).values())
    sizes = {f"{name}_bytes": (folder / f"{name}.safetensors").stat().st_size for name in ("masks", "trained")}
    bits = {"mask_bits_per_weight": round(8 * sizes["masks_bytes"] / n_prunable, 4)}
    return Written(source.model, sizes | bits, (_beside_base(source),))


def _beside_base(source: Source) -> str:
    label = base_of(source.run.record["config"]["model"], named_in="the run's record").label
    return (
        f"{MASKS_FILE} and {TRAINED_FILE} need the base model, {label}, which is not in this folder and which all such "
        f"folders can share; it is loaded from where it was, or from cap.load(..., base=FOLDER)."
    )


def _write_onnx(source: Source, folder: Path) -> Written:
    compacted = source.compacted
    (folder / ONNX_FILE).write_bytes(source.graph)
    source.model.config.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    _say_what_went(compacted)
    return Written(compacted.model, compacted.for_record())


def _write_int8(source: Source, folder: Path) -> Written:
    written = _write_onnx(source, folder)
    float_file = folder / "float32.onnx"
    shutil.move(folder / ONNX_FILE, float_file)
    quantise_onnx(float_file, folder / ONNX_FILE)
    float_file.unlink()
    return written


def _write_plain(source: Source, folder: Path) -> Written:
    save_model(source.model, source.tokenizer, folder)
    return Written(source.model)


def _say_what_went(compacted: Compacted) -> None:
    counts = compacted.for_record()
    heads, ffn = counts["heads"], counts["ffn"]
    log.info(
        "attention heads: %d of %d left; FFN units: %s of %s left",
        heads["after"],
        heads["before"],
        f"{ffn['after']:,}",
        f"{ffn['before']:,}",
    )
    if compacted.note:
        log.warning(compacted.note)


def _require_base(source: Source) -> None:
    require_keys(source.run, ("config.model",))
    if source.vocabulary is not None:
        raise InputError(
            "format=masks lies on a base that keeps all of its pieces, got vocabulary with it; leave vocabulary out, "
            "or choose another format"
        )


def _require_vocabulary(source: Source) -> None:
    if source.vocabulary is None:
        raise InputError(
            f"format=plain is the run's own model with fewer pieces, got vocabulary=null, with which it would be "
            f"{source.run.name}/{MODEL} once more; give vocabulary=auto, or take that folder"
        )


def _require_pattern(source: Source) -> None:
    pattern = PATTERNS[_PATTERN]
    for name, linear in prunable_linears(source.model).items():
        if not follows_pattern(linear.weight, pattern.n_kept, pattern.size):
            raise InputError(
                f"format=semi_structured needs matrices with at most {pattern.n_kept} of every {pattern.size} weights "
                f"kept, got {name} with more; prune with pruning.pattern={pattern} sparsity={pattern.sparsity:g} "
                f"(magnitude, movement, first_order, second_order, platon, admm or random)"
            )
    require_sparse_gpu()


def tensors_on(batch: Mapping[str, Tensor | np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Copy the tensors of a batch to a device; the numbers that stay with the host are none."""
    return {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}


class _OnGpu:
    """Run a 2:4 model on the GPU, with inputs and logits on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.model = to_semi_structured(load(folder))
        self._pooling = sentence_pooling(ModelSource(str(folder), folder.name)) or "first_token"

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        return logits_of(self.model, pooling=self._pooling)(tensors_on(batch, torch.device("cuda"))).cpu()


def _beside_half(source: Source, loaded: Any) -> tuple[dict[str, Any], torch.device]:
    """Time against the dense model in the same precision on the same device."""
    dense = copy.deepcopy(source.beside).half().cuda().eval()
    return {"dense": dense, "export": loaded.model}, torch.device("cuda", torch.cuda.current_device())


_RUN_SEMI_STRUCTURED = """import cap
from transformers import AutoTokenizer
from cap.models.semi_structured import to_semi_structured

model, tokenizer = to_semi_structured(cap.load("{folder}")), AutoTokenizer.from_pretrained("{folder}")"""
_RUN_STOCK = """from transformers import {auto_class}, AutoTokenizer

model, tokenizer = {auto_class}.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")"""
_RUN_ONNX = """import onnxruntime
from transformers import AutoConfig, AutoTokenizer

session, tokenizer = onnxruntime.InferenceSession("{folder}/model.onnx"), AutoTokenizer.from_pretrained("{folder}")"""
_RUN_SENTENCES = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}")"""
# What the pooled states of a text are scaled to, so that products of vectors are cosine similarities.
_ENCODE = """import cap
import torch
from transformers import AutoTokenizer

model, tokenizer = cap.load("{folder}"), AutoTokenizer.from_pretrained("{folder}")
inputs = tokenizer(["a text", "another one"], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
hidden, real = model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
vectors = torch.nn.functional.normalize(POOLED)"""
_POOLED = {"mean": "(hidden * real).sum(dim=1) / real.sum(dim=1)", "first_token": "hidden[:, 0]"}
_ENCODE_ONNX = """
inputs = tokenizer(["a text", "another one"], padding=True, truncation=True, max_length=LENGTH, return_tensors="np")
vectors = session.run(["sentence_embedding"], dict(inputs))[0]"""


def _how_to_run_onnx(source: Source) -> str:
    if source.is_of_encodings:
        return _RUN_ONNX + _ENCODE_ONNX.replace("LENGTH", str(source.max_length))
    return _RUN_ONNX + _asked(source, of="session")


def _asked(source: Source, *, of: Literal["model", "session"]) -> str:
    asks = asks_of(source.task, source.tokenizer)
    return asked(asks, max_length=source.max_length, of=of)


def _how_to_run_stock(source: Source) -> str:
    if source.is_of_encodings:
        return _RUN_SENTENCES
    return _RUN_STOCK.format(auto_class=auto_class(source)).replace("FOLDER", "{folder}") + _asked(source, of="model")


def how_to_load(source: Source, chosen: Format) -> str | None:
    """Return the lines that load an export and ask it; None if ``cap.load`` alone does it."""
    if chosen.how_to_load is not None:
        return chosen.how_to_load(source)
    if not source.is_of_encodings:
        return None  # the card adds how to ask
    return _ENCODE.replace("LENGTH", str(source.max_length)).replace("POOLED", _POOLED[source.pooling])


def auto_class(source: Source) -> str:
    """Name the class of transformers that loads the run's model."""
    return AUTO_CLASS[source.task.kind]


FORMATS: dict[str, Format] = {
    "compact": Format(write=_write_compact, load=load, tolerance=1e-5),
    "sparse": Format(write=_write_sparse, load=load, tolerance=1e-5, is_bit_identical=True, is_dense_again=True),
    "masks": Format(
        write=_write_masks,
        load=load,
        tolerance=1e-5,
        is_bit_identical=True,
        is_dense_again=True,
        require=_require_base,
    ),
    "onnx": Format(
        write=_write_onnx,
        load=lambda folder: OnnxModel(folder / ONNX_FILE),
        runtime="onnxruntime",
        tolerance=1e-5,
        how_to_load=_how_to_run_onnx,
        require=lambda source: require_onnx(),
    ),
    "semi_structured": Format(
        write=_write_plain,
        load=_OnGpu,
        tolerance=None,
        loads_with_transformers=True,
        how_to_load=lambda source: _RUN_SEMI_STRUCTURED,  # on a GPU, in half precision
        require=_require_pattern,
        beside=_beside_half,
        no_gain="at this size the kernels that skip the zeros gain nothing over dense ones",
    ),
    "plain": Format(
        write=_write_plain,
        load=load,
        tolerance=1e-5,
        is_bit_identical=True,
        is_dense_again=True,
        loads_with_transformers=True,
        how_to_load=_how_to_run_stock,
        require=_require_vocabulary,
    ),
    "int8": Format(
        write=_write_int8,
        load=lambda folder: OnnxModel(folder / ONNX_FILE),
        runtime="onnxruntime",
        tolerance=None,
        how_to_load=_how_to_run_onnx,
        require=lambda source: require_onnx(),
        no_gain="on this processor the products of int8 save less than turning numbers into int8 and back takes",
        counted="before rounding to int8",
    ),
}
"""Every format by the word that follows ``format=``."""

__all__ = ["FORMATS", "Format", "Written", "auto_class", "how_to_load"]
