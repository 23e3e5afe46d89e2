"""Load any folder that this program or transformers saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel

from cap.base.errors import InputError, first_line
from cap.formats.compact import load_compact
from cap.formats.folders import WEIGHTS_FILE, model_class, read_config
from cap.formats.masks import MASKS_FILE, load_masks
from cap.formats.onnx import ONNX_FILE, is_onnx_folder
from cap.formats.sparse import ENCODER_FILE, load_sparse
from cap.models.encoders import quiet_transformers
from cap.models.layout import LAYOUT_KEY


def load(folder: str | Path, *, base: str | Path | None = None) -> PreTrainedModel:
    """Load a saved model into its stock transformers class, whatever format it is in.

    Args:
        folder: A compact or sparse export, masks, or a plain folder as transformers saves it, such as a run's
            ``model/``.
        base: The model that masks lie on, a folder or a Hub name; None looks where it was when the run was made.

    Returns:
        The model in float32 and eval mode; a compact one has smaller linear layers, and can be trained on.

    Raises:
        InputError: If the folder holds no model, more than one, a damaged one, or an ONNX graph; if masks are put on
            another base than they were learned on, or a base is named for something else.
    """
    folder = Path(folder)
    if is_onnx_folder(folder):
        raise InputError(
            f"cap.load gives torch models, got {folder} with {ONNX_FILE}, a graph that onnxruntime runs; take the "
            f"lines under Load in its README.md (onnxruntime.InferenceSession), or load an export with format=compact"
        )
    config = read_config(folder)
    found = [name for name in (ENCODER_FILE, MASKS_FILE, WEIGHTS_FILE) if (folder / name).is_file()]
    if len(found) > 1:
        raise InputError(
            f"a folder must hold one model, got {folder} with both {found[0]} and {found[1]}; "
            f"remove the one that does not belong to its config.json, or export to an empty folder"
        )
    if found == [MASKS_FILE]:
        return load_masks(folder, base=base)
    if base is not None:
        raise InputError(
            f"base names the model that masks lie on, got base={base} for {folder}, which holds weights of its own "
            f"and no {MASKS_FILE}; leave it out"
        )
    if found == [ENCODER_FILE]:
        return load_sparse(folder)
    if hasattr(config, LAYOUT_KEY):
        return load_compact(folder)
    return _load_plain(folder, config)


def _load_plain(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    chosen = model_class(config)
    try:
        with quiet_transformers():
            loaded: Any = chosen.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise InputError(
            f"a plain model must be a whole folder that {chosen.__name__}.from_pretrained loads, got {folder} "
            f"({reason}); save or export the model again"
        ) from error
    model: PreTrainedModel
    model, info = loaded
    if info["missing_keys"]:
        # transformers would make them up.
        raise InputError(
            f"a plain model must have all weights of {chosen.__name__}, got {folder} without "
            f"{', '.join(sorted(info['missing_keys']))}; save the model again, or fine-tune it first"
        )
    model.eval()
    return model


__all__ = ["load"]
