"""Tell weights apart by their files, without loading them."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from cap.base.files import file_sha256

# As transformers looks for them: the first kind that is there is loaded.
_KINDS = ("*.safetensors", "pytorch_model*.bin")


def weight_hashes(name_or_path: str, *, revision: str | None = None) -> dict[str, str]:
    """Hash the files of a model's weights.

    Args:
        name_or_path: A folder, or a Hub name.
        revision: The Hub's branch, tag or commit.

    Returns:
        SHA-256 by file name, of a Hub name as its cache on this machine has it; empty where there are no files.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        kinds = (sorted(folder.glob(pattern)) for pattern in _KINDS)
        return {file.name: file_sha256(file) for file in next(filter(None, kinds), [])}
    for name in ("model.safetensors", "pytorch_model.bin"):
        try:
            cached = try_to_load_from_cache(name_or_path, name, revision=revision or "main")
        except ValueError:  # no Hub name either
            return {}
        if isinstance(cached, str):
            return {name: Path(cached).resolve().name}  # the cache calls a large file by its hash
    return {}


__all__ = ["weight_hashes"]
