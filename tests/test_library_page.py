"""docs/library.md: its table is what the classes say, and its code runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "library.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.split(" | ")] for line in PAGE.splitlines() if line.startswith("| `cap.")]


def test_every_pruner_is_there():
    import cap
    from cap.pruning.pruner import Pruner

    classes = {name: kind for name in cap.__all__ if inspect.isclass(kind := getattr(cap, name))}
    pruners = [name for name, kind in classes.items() if issubclass(kind, Pruner) and not inspect.isabstract(kind)]
    assert sorted(re.findall(r"`cap\.(\w+)`", " ".join(row[0] for row in ROWS))) == sorted(pruners)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_arguments_scores_and_pass_are_those_of_the_class(row):
    import cap

    kind = getattr(cap, re.findall(r"`cap\.(\w+)`", row[0])[0])
    parameters = inspect.signature(kind).parameters
    assert re.findall(r"`(\w+)`", row[1]) == list(parameters)
    given = {"final_sparsity": 0.5} if "final_sparsity" in parameters else {}
    has_scores = kind.learns_scores and kind.score_parameters is not cap.Magnitude.score_parameters
    assert row[2] == ("yes" if has_scores else "no")
    with_pass = kind(**given).importance_pass is not None
    if "loss" in row[3]:
        assert not with_pass
        assert kind(**given, importance="loss").importance_pass is not None
    else:
        assert row[3] == ("yes" if with_pass else "no")


def test_code_for_a_checkpoint_leaves_the_model_that_was_pruned(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import save_file

    from cap import Magnitude, attach
    from cap.models.encoders import load_saved_model
    from tests.models.tiny_models import tiny_batch, tiny_classifier

    model = tiny_classifier()
    pruner = attach(model, Magnitude())
    pruner.update_masks(0.5)
    (tmp_path / "out" / "checkpoint-500").mkdir(parents=True)
    save_file(dict(model.state_dict()), tmp_path / "out" / "checkpoint-500" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    code = PAGE.partition("## A model from a checkpoint")[2].partition("```python\n")[2].partition("```")[0]
    exec(compile(code, "library.md", "exec"), {"model": tiny_classifier(seed=1)})
    pruner.fold()
    with torch.no_grad():
        expected, found = (
            one(**tiny_batch()).logits for one in (model, load_saved_model(tmp_path / "pruned", "classes"))
        )
    assert torch.equal(found, expected)


def test_code_of_a_pass_runs_and_leaves_half(tmp_path, monkeypatch):
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    from cap.models.families import prunable_linears
    from cap.pruning.masks import count_zeros
    from tests.models.tiny_models import tiny_batch, tiny_classifier

    class Module(LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    model = tiny_classifier().train()
    rows = [tiny_batch() | {"labels": torch.tensor([0, 1, 1])}] * 6
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    names = {"model": model, "trainer": trainer, "module": Module(model)}
    names |= {"batches": rows[:2], "train_loader": DataLoader(rows, batch_size=None)}
    monkeypatch.chdir(tmp_path)
    exec(compile(PAGE.partition("```python\n")[2].partition("```")[0], "library.md", "exec"), names)
    counts = count_zeros(prunable_linears(model)).values()
    assert sum(zeros for zeros, _ in counts) / sum(n for _, n in counts) == pytest.approx(0.5, abs=0.02)
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
