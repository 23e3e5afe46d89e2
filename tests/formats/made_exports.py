"""Tiny runs, and exports of them, made as the command line would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUICK = ("teacher=none", "distill=none", "contrast=none", "trainer.max_steps=2")


def make_run(folder: Path, *overrides: str) -> Path:
    """Train, and leave the run in ``folder`` beside its cache."""
    from cap.train import train
    from tests.composing import composer

    common = [
        f"output_dir={folder}",
        f"cache_dir={folder.parent / 'cache'}",
        "max_length=32",
        "batch_size=8",
        "finetune.max_epochs=1",
        "trainer.max_epochs=1",
        "trainer.log_every_n_steps=1",
        "trainer.enable_progress_bar=false",
        "trainer.accelerator=cpu",
    ]
    train(composer()(*common, *overrides))
    return folder


def make_export(run: Path, name: str, target: Path, *overrides: str) -> Path:
    """Export a run, without measuring latency unless ``overrides`` say so."""
    from hydra.core.config_store import ConfigStore

    from cap.config.export import ExportConfig
    from cap.export import export
    from tests.composing import composer

    ConfigStore.instance().store(name="export_schema", node=ExportConfig)
    given = [f"run={run}", f"format={name}", f"output_dir={target}", f"cache_dir={run.parent / 'cache'}"]
    export(composer("export")(*given, "latency_seconds=0", *overrides))
    return target


def read(folder: Path, file: str = "export.json") -> dict[str, Any]:
    """Read a JSON file of a folder."""
    return json.loads((folder / file).read_text(encoding="utf-8"))


def lines_of_card(folder: Path) -> str:
    """Return the lines of a card that load the model."""
    (lines,) = (
        part.split("```")[0] for part in (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    )
    return lines


def write_rows(folder: Path, rows: list[dict[str, Any]], n_validation: int | None = None) -> Path:
    """Write the same rows as both splits, or fewer for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, n_rows in (("train", None), ("validation", n_validation)):
        text = "".join(json.dumps(row) + "\n" for row in rows[:n_rows])
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder
