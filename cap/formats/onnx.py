"""Models as ONNX graphs: written by torch, run by onnxruntime, quantised by onnxruntime."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES

from cap.base.errors import InputError, RunError, first_line
from cap.base.files import full_disk_reason
from cap.models.pooled import PooledModel, Pooling, evaluating, normalise

ONNX_FILE = "model.onnx"
_TORCH_WEIGHTS = ("*.safetensors", "*.bin")
# torch puts larger weights into a second file, and a protobuf file ends at 2 GiB.
_MOST_BYTES = 1536 * 2**20
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_LOGITS = ("logits",)
_SPAN_LOGITS = ("start_logits", "end_logits")
ENCODING = "sentence_embedding"
"""What a graph without a head calls the vector of a text, as other programs do."""
_ENCODINGS = ("last_hidden_state", ENCODING)


class OnnxModel:
    """Run an ONNX graph on the CPU.

    Args:
        path: What ``export_onnx`` or ``quantise_onnx`` wrote.

    Raises:
        InputError: If onnxruntime is missing or cannot read the file.
    """

    def __init__(self, path: Path) -> None:
        require_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; shapes that onnxruntime infers differently are no news
        options.intra_op_num_threads = torch.get_num_threads()  # as many as torch takes, so that times compare
        # Threads that spin after a call would take the cores from a torch model that is called next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common base below this
            raise InputError(
                f"an ONNX graph must be whole, got {path.name} ({first_line(error)}); export it again"
            ) from error
        self._inputs = [value.name for value in self._session.get_inputs()]
        names = [value.name for value in self._session.get_outputs()]
        self._outputs = [ENCODING] if ENCODING in names else names

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute the logits of a batch: (batch, outputs), or (batch, tokens, outputs) where answers lie in the text.

        Of an encoder without a head it is the encodings, (batch, dim).

        Inputs may lie on any device, which the logits come back to.
        """
        # Single texts, and made-up ones, come without token types: all are of the first kind.
        zeros = torch.zeros_like(batch["input_ids"])
        outputs = self._session.run(
            self._outputs, {name: batch.get(name, zeros).cpu().numpy() for name in self._inputs}
        )
        tensors = [torch.from_numpy(output).to(zeros.device) for output in outputs]
        return tensors[0] if len(tensors) == 1 else torch.stack(tensors, dim=-1)


def is_onnx_folder(folder: Path) -> bool:
    """Say whether a folder holds a graph, and no weights that torch could load."""
    has_weights = any(True for pattern in _TORCH_WEIGHTS for _ in folder.glob(pattern))
    return (folder / ONNX_FILE).is_file() and not has_weights


def export_onnx(
    model: PreTrainedModel, batch: Mapping[str, Tensor], path: Path, *, pooling: Pooling = "first_token"
) -> None:
    """Write a model as one ONNX file with free batch size and length.

    A bare encoder's graph gives the hidden states of all tokens and, beside them, the vector of each text.

    Args:
        model: With its task head or bare, on the CPU; smaller layers are welcome.
        batch: Inputs by the names that the graph will take, at least two rows of two tokens.
        path: The new file.
        pooling: How a bare encoder's hidden states become the vector of a text.

    Raises:
        InputError: If a package is missing, or the weights are more than one file holds.
        RunError: If torch cannot trace the model.
    """
    require_onnx()
    n_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if n_bytes > _MOST_BYTES:
        raise InputError(
            f"format=onnx and format=int8 write one file, which holds weights of {_MOST_BYTES / 2**30:g} GiB at most, "
            f"got {n_bytes / 2**30:.2f} GiB; choose another format, prune whole layers or units, or cut the vocabulary"
        )
    names = tuple(batch)
    is_span = type(model).__name__ == MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.get(model.config.model_type)
    output_names = _ENCODINGS if model.base_model is model else _SPAN_LOGITS if is_span else _LOGITS
    axes: Any = {name: {0: "batch", 1: "tokens"} for name in names}
    with evaluating(model), _quiet(), _told("torch could write this model as a graph"):
        program: Any = torch.onnx.export(
            _Positional(PooledModel(model, pooling), names, output_names),
            tuple(batch[name] for name in names),
            dynamo=True,
            input_names=list(names),
            output_names=list(output_names),
            dynamic_shapes={"inputs": tuple(axes[name] for name in names)},
            verbose=False,
        )
        program.save(path, external_data=False)


def quantise_onnx(source: Path, target: Path) -> None:
    """Write a copy of a graph whose matrices are int8, with activations quantised while it runs.

    Args:
        source: A float32 graph.
        target: The new file.

    Raises:
        InputError: If a package is missing.
        RunError: If the graph cannot be quantised.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source)
    # Shapes that torch noted for values in between do not fit the operators that quantisation puts there.
    graph.graph.ClearField("value_info")
    with _quiet(), _told("onnxruntime could quantise this graph"):
        quantize_dynamic(graph, target, weight_type=QuantType.QInt8)


def require_onnx() -> None:
    """Check that the packages are installed.

    Raises:
        InputError: If one is missing, with the line that installs it.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"ONNX graphs (format=onnx, format=int8) need the packages {', '.join(_PACKAGES)}, got none called "
            f"{', '.join(missing)}; run `pip install 'cap-pruning[onnx]'`"
        )


class _Positional(nn.Module):
    """Give a model positional inputs and plain tensors as outputs, which is what a graph has."""

    def __init__(self, pooled: PooledModel, names: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.pooled = pooled
        self.names = names
        self.outputs = outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        batch = dict(zip(self.names, inputs, strict=True))
        output = self.pooled.model(**batch)
        if ENCODING in self.outputs:
            hidden = output.last_hidden_state
            return hidden, normalise(self.pooled.pool(output, batch["attention_mask"]))
        return tuple(getattr(output, name) for name in self.outputs)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say in one line that another program could not do its part: their exceptions have no common base."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or full_disk_reason(error) is not None:
            raise
        raise RunError(f"the export needs that {what}, got {type(error).__name__}: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on packages and operators of no concern off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = [
    "ONNX_FILE",
    "OnnxModel",
    "export_onnx",
    "is_onnx_folder",
    "quantise_onnx",
    "require_onnx",
]
