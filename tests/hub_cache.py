"""A Hub cache made by hand, so that the libraries' own code finds a data set and a model without a network.

The libraries read ``HF_HOME`` and the offline switches when they are imported: use ``hub_environment`` for a
subprocess.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

DATASET_REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
MODEL_REVISION = "86b5e0934494bd15c9632b12f734a8a67f723594"


def hub_environment(hf_home: Path, **more: str) -> dict[str, str]:
    """Return this process's environment with the Hub at ``hf_home`` and no network behind it."""
    # A setting of the machine that runs the tests must not win over the cache that the test made.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return clean | {"HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "1"} | more


def make_hub_dataset(
    hf_home: Path,
    splits: dict[str, dict[str, list[Any]]],
    *,
    path: str = "nyu-mll/glue",
    config: str = "qqp",
    class_names: dict[str, list[str]] | None = None,
) -> Path:
    """Leave what ``load_dataset(path, config)`` leaves in its cache after a download.

    Args:
        hf_home: What ``HF_HOME`` will be.
        splits: The columns of each split.
        path: The data set's name, ``owner/name``.
        config: The data set's configuration.
        class_names: Names of the classes of a column of numbers.

    Returns:
        The folder that was made.
    """
    from datasets import ClassLabel, Dataset, DatasetInfo, SplitDict, SplitInfo
    from datasets.arrow_writer import ArrowWriter

    owner, name = path.split("/")
    folder = hf_home / "datasets" / f"{owner}___{name}" / config / "0.0.0" / DATASET_REVISION
    folder.mkdir(parents=True)
    sizes = SplitDict(dataset_name=name)
    for split, columns in splits.items():
        features = Dataset.from_dict(columns).features
        features |= {column: ClassLabel(names=names) for column, names in (class_names or {}).items()}
        rows = Dataset.from_dict(columns, features=features)
        with ArrowWriter(path=str(folder / f"{name}-{split}.arrow"), features=rows.features) as writer:
            writer.write_table(rows.data.table)
            n_rows, n_bytes = writer.finalize()
        sizes.add(SplitInfo(name=split, num_bytes=n_bytes, num_examples=n_rows))
    about = {"builder_name": "parquet", "dataset_name": name, "config_name": config, "version": "0.0.0"}
    DatasetInfo(**about, splits=sizes, features=rows.features).write_to_directory(str(folder))
    return folder


def make_hub_model(hf_home: Path, folder: Path, *, name: str = "google-bert/bert-base-uncased") -> Path:
    """Copy a saved model and tokenizer to where ``from_pretrained(name)`` looks for a download.

    Args:
        hf_home: What ``HF_HOME`` will be.
        folder: What ``save_pretrained`` of the model and of the tokenizer wrote.
        name: The model's name, ``owner/name``.

    Returns:
        The snapshot's folder.
    """
    repository = hf_home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / MODEL_REVISION
    shutil.copytree(folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(MODEL_REVISION, encoding="utf-8")
    return snapshot
