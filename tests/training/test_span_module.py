"""CapModule on question answering: three banks, a ragged teacher, windows that belong together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.small_modules import SIZES, settings

N_WINDOWS, DIM = 12, 32
N_TOKENS = np.array([9, 4, 7, 12, 5, 12, 3, 8, 10, 6, 11, 5])
# Windows 0-2, 3-4 and 8-9 are each of one question.
QUESTIONS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5, 5, 6, 7])
N_ENCODINGS = {"pretrained": 1, "snapshots": 2, "finetuned": 1}


def _answers() -> Tensor:
    draw = np.random.default_rng(3)
    return torch.tensor([sorted(draw.integers(0, n, 2).tolist()) for n in N_TOKENS])


def _save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def _unit_rows(seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((N_WINDOWS, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def _teacher_logits() -> np.ndarray:
    return np.random.default_rng(9).standard_normal((N_TOKENS.sum(), 2)).astype(np.float16)


def _bank(source: str, number: int) -> np.ndarray:
    return _unit_rows(10 * sorted(N_ENCODINGS).index(source) + number)


@pytest.fixture
def memory(tmp_path):
    from cap.base.memory_budget import MemoryBudget
    from cap.objectives.memory import Memory

    memory = Memory(n_examples=N_WINDOWS, budget=MemoryBudget(1.0))
    for source, n_encodings in N_ENCODINGS.items():
        for number in range(n_encodings):
            memory.add(source, _save(tmp_path / f"{source}-{number}.npy", _bank(source, number)))
    lengths = _save(tmp_path / "lengths.npy", N_TOKENS)
    memory.set_teacher_logits(_save(tmp_path / "logits.npy", _teacher_logits()), lengths=lengths)
    return memory


@pytest.fixture
def make_module(memory):
    """Make a CapModule around a two-layer BERT that answers questions."""

    def make(**changes: Any):
        from transformers import BertConfig, BertForQuestionAnswering

        from cap.models.pooled import PooledModel
        from cap.training.module import CapModule

        torch.manual_seed(0)
        config = BertConfig(vocab_size=20, max_position_embeddings=32, **SIZES)
        every_bank = {"sources": ("pretrained", "snapshots", "finetuned"), "extra_examples": 8}
        wanted = settings(memory, **(every_bank | changes.pop("contrast", {})))
        wanted |= {"train_labels": _answers(), "train_groups": QUESTIONS} | changes
        return CapModule(PooledModel(BertForQuestionAnswering(config), "first_token"), **wanted)

    return make


def batch(ids: list[int], *, width: int | None = None) -> dict[str, Tensor]:
    n_tokens = torch.from_numpy(N_TOKENS)[ids]
    width = width or int(n_tokens.max())
    tokens = torch.randint(5, 20, (N_WINDOWS, 32), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(width) < n_tokens[:, None]).long()
    return {
        "input_ids": tokens[ids, :width] * mask,
        "attention_mask": mask,
        "labels": _answers()[ids],
        "example_id": torch.tensor(ids),
        "group_id": QUESTIONS[ids],
    }


BATCHES = [[0, 1, 5, 8], [3, 4, 9, 2], [10, 11, 7, 6]]


def fit(module, folder: Path):
    from lightning.pytorch import Callback
    from torch.utils.data import DataLoader

    from cap.training.trainer import build_trainer

    class Kept(Callback):
        def __init__(self) -> None:
            self.steps: list[dict[str, float]] = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            metrics = trainer.callback_metrics.items()
            self.steps.append({name: float(value) for name, value in metrics if name.startswith("loss/")})

    kept = Kept()
    options = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = build_trainer(options | {"log_every_n_steps": 1}, run_dir=folder, callbacks=[kept])
    loader = DataLoader([batch(ids) for ids in BATCHES], batch_size=None)
    trainer.fit(module, train_dataloaders=loader, val_dataloaders=loader)
    return kept.steps


def terms_of(module, ids: list[int], **options: Any) -> dict[str, Tensor]:
    made = batch(ids, **options)
    return module.eval().loss_terms(module(made), made)


def _log_softmax(column: Tensor, temperature: float) -> list[float]:
    scaled = [x / temperature for x in column.double().tolist()]
    log_sum = math.log(sum(math.exp(x) for x in scaled))
    return [x - log_sum for x in scaled]


def test_three_steps_with_all_banks_stay_finite_with_every_term(make_module, tmp_path):
    steps = fit(make_module(), tmp_path)
    names = {"loss/ce", "loss/kd", "loss/prc", "loss/snc", "loss/fic", "loss/total"}
    assert [set(step) for step in steps] == [names] * 3
    assert all(math.isfinite(value) for step in steps for value in step.values())


def test_a_step_moves_encoder_and_head(make_module, tmp_path):
    module = make_module()
    before = {name: value.clone() for name, value in module.student.named_parameters()}
    fit(module, tmp_path)
    moved = {name for name, value in module.student.named_parameters() if not torch.equal(value, before[name])}
    assert {"model.qa_outputs.weight", "model.bert.encoder.layer.0.attention.self.query.weight"} <= moved


def test_label_term_is_the_mean_of_start_and_end_over_real_tokens(make_module):
    module, ids = make_module(), [0, 1, 5, 8]
    logits = module.eval()(batch(ids)).logits.detach()
    expected = 0.0
    for row, window in enumerate(ids):
        for end in (0, 1):
            log_prob = _log_softmax(logits[row, : N_TOKENS[window], end], 1.0)
            expected -= log_prob[_answers()[window, end]] / (2 * len(ids))
    assert terms_of(module, ids)["ce"].item() == pytest.approx(0.1 * expected, rel=1e-5)


def test_distillation_term_compares_each_window_with_its_own_stored_logits(make_module):
    module, ids = make_module(), [4, 3, 9]
    logits = module.eval()(batch(ids)).logits.detach()
    stored = torch.from_numpy(_teacher_logits()).split(N_TOKENS.tolist())
    expected = 0.0
    for row, window in enumerate(ids):
        for end in (0, 1):
            q = _log_softmax(logits[row, : N_TOKENS[window], end], 2.0)
            p = _log_softmax(stored[window][:, end], 2.0)
            expected += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)) / (2 * len(ids))
    assert terms_of(module, ids)["kd"].item() == pytest.approx(0.9 * 2.0**2 * expected, rel=1e-4)


@pytest.mark.parametrize("name", ["ce", "kd", "prc", "snc", "fic"])
def test_a_batch_that_is_padded_further_has_the_same_terms(make_module, name):
    narrow = terms_of(make_module(), [4, 6, 1])[name]
    wide = terms_of(make_module(), [4, 6, 1], width=24)[name]
    torch.testing.assert_close(wide, narrow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("source", sorted(N_ENCODINGS))
def test_contrast_leaves_out_other_windows_of_the_question(make_module, source):
    names = {"pretrained": "prc", "snapshots": "snc", "finetuned": "fic"}
    ids = [0, 1, 5, 8]
    # Every other window is an extra, whatever is drawn.
    module = make_module(contrast={"sources": (source,), "extra_examples": 8 * N_ENCODINGS[source]})
    pooled = module.eval()(batch(ids)).pooled.detach().double()
    anchors = pooled / pooled.norm(dim=1, keepdim=True)
    banks = [torch.from_numpy(_bank(source, number)).double() for number in range(N_ENCODINGS[source])]
    total, n_pairs = 0.0, 0
    for i, window in enumerate(ids):
        candidates = [(other, anchors[j]) for j, other in enumerate(ids) if j != i]
        candidates += [(other, bank[other]) for other in range(N_WINDOWS) for bank in banks]
        candidates = [(o, c) for o, c in candidates if o == window or QUESTIONS[o] != QUESTIONS[window]]
        similarity = [float(anchors[i] @ encoding) / 0.1 for _, encoding in candidates]
        log_sum = math.log(sum(math.exp(x) for x in similarity))
        own = [x - log_sum for x, (other, _) in zip(similarity, candidates, strict=True) if other == window]
        total -= sum(own) / len(own)
        n_pairs += len(own)
    assert terms_of(module, ids)[names[source]].item() == pytest.approx(0.5 * total / n_pairs, rel=1e-4)


@pytest.mark.parametrize("labels", [_answers(), torch.arange(12.0), None], ids=["spans", "numbers", "none"])
def test_labels_that_are_no_classes_give_no_supervised_term(make_module, labels):
    with_weight = make_module(train_labels=labels)
    without_weight = make_module(train_labels=labels, contrast={"supervised_weight": 0.0})
    assert terms_of(with_weight, [0, 5])["prc"].item() == terms_of(without_weight, [0, 5])["prc"].item()


def test_an_equal_teacher_has_nothing_to_teach(make_module, memory, tmp_path):
    from cap.training.module import Distill

    module = make_module(distill=Distill(weight=1.0, ce_weight=0.0, temperature=1.0))
    with torch.no_grad():
        own = [module.eval()(batch([window])).logits[0].half() for window in range(N_WINDOWS)]
    logits = _save(tmp_path / "own.npy", torch.cat(own).numpy())
    memory.set_teacher_logits(logits, lengths=tmp_path / "lengths.npy")
    assert terms_of(module, [7])["kd"].item() == pytest.approx(0.0, abs=1e-5)


def test_snapshot_of_a_reader_is_distilled_from_as_a_teacher_is(make_module, memory, tmp_path):
    from cap.training.module import Distill

    memory.set_snapshot_logits(_save(tmp_path / "s.npy", _teacher_logits()), lengths=tmp_path / "lengths.npy")
    module = make_module(distill=Distill(weight=0.5, ce_weight=0.0, temperature=2.0, snapshot_weight=0.5))
    terms = terms_of(module, [4, 3, 9], width=15)
    assert terms["snapshot_kd"].item() == terms["kd"].item() > 0


def test_half_precision_changes_the_terms_little(make_module):
    expected = terms_of(make_module(), [0, 1, 5, 8])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = terms_of(make_module(), [0, 1, 5, 8])
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=0.05
    )
