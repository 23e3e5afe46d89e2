"""CapModule on tagged words: labels and teacher word by word, and texts without a label to contrast by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cap.training.parallel.ranks import ALONE, Ranks, Share
from tests.training.small_modules import SIZES, settings

N_ROWS, DIM, N_TAGS, WIDTH = 6, 32, 3, 9
N_TOKENS = np.array([9, 4, 7, 3, 5, 8])
# Places of the first sub-words; the fourth row has none.
WORDS = [[1, 3, 4, 7], [1, 2], [2, 5], [], [1, 3], [1, 2, 6]]


def _unit_rows(seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((N_ROWS, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def _stored() -> list[np.ndarray]:
    draw = np.random.default_rng(9)
    return [draw.standard_normal((n, N_TAGS)).astype(np.float16) for n in N_TOKENS]


def _save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.fixture
def make_module(tmp_path):
    """Make a CapModule around a two-layer BERT that tags words, with a bank and a teacher's logits."""

    def make(supervised_weight: float = 10.0, ranks: Ranks = ALONE, **changes: Any):
        from transformers import BertConfig, BertForTokenClassification

        from cap.models.pooled import PooledModel
        from cap.objectives.memory import Memory
        from cap.training.module import CapModule

        torch.manual_seed(0)
        model = BertForTokenClassification(BertConfig(vocab_size=20, num_labels=N_TAGS, **SIZES))
        memory = Memory(n_examples=N_ROWS)
        memory.add("pretrained", _save(tmp_path / "bank.npy", _unit_rows(3)))
        lengths = _save(tmp_path / "lengths.npy", N_TOKENS)
        memory.set_teacher_logits(_save(tmp_path / "logits.npy", np.concatenate(_stored())), lengths=lengths)
        wanted = settings(memory, supervised_weight=supervised_weight) | changes
        module = CapModule(PooledModel(model, "first_token"), **wanted).eval()
        module.ranks = ranks  # as a trainer's strategy would give them
        return module

    return make


def batch(ids: list[int], *, width: int | None = None) -> dict[str, Tensor]:
    n_tokens = torch.from_numpy(N_TOKENS)[ids]
    width = width or int(n_tokens.max())
    tokens = torch.randint(5, 20, (N_ROWS, WIDTH + 4), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(width) < n_tokens[:, None]).long()
    labels = torch.full((len(ids), width), -100)
    for place, row in enumerate(ids):
        for word in WORDS[row]:
            labels[place, word] = (row + word) % N_TAGS
    return {
        "input_ids": tokens[ids, :width] * mask,
        "attention_mask": mask,
        "labels": labels,
        "is_word": labels != -100,
        "example_id": torch.tensor(ids),
    }


def terms_of(module, ids: list[int], *, width: int | None = None) -> dict[str, Tensor]:
    made = batch(ids, width=width)
    return module.loss_terms(module(made), made)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.double() - logits.double().exp().sum().log()


def test_label_term_is_the_mean_over_words(make_module):
    module, ids = make_module(), [0, 3, 5]
    logits = module(batch(ids)).logits.detach()
    losses = [
        -_log_softmax(logits[place, word])[(row + word) % N_TAGS]
        for place, row in enumerate(ids)
        for word in WORDS[row]
    ]
    assert len(losses) == 7
    assert terms_of(module, ids)["ce"].item() == pytest.approx(0.1 * float(torch.stack(losses).mean()), rel=1e-5)


def test_distillation_term_compares_each_word_with_its_own_stored_logits(make_module):
    # The longest row of the batch is not the longest of the memory, and the batch is padded further.
    module, ids = make_module(), [2, 4, 1]
    logits = module(batch(ids, width=WIDTH)).logits.detach()
    losses = []
    for place, row in enumerate(ids):
        for word in WORDS[row]:
            given = _log_softmax(torch.from_numpy(_stored()[row][word]).double() / 2)
            own = _log_softmax(logits[place, word].double() / 2)
            losses.append((given.exp() * (given - own)).sum())
    expected = 0.9 * 2.0**2 * float(torch.stack(losses).mean())
    assert terms_of(module, ids, width=WIDTH)["kd"].item() == pytest.approx(expected, rel=1e-4)


def test_what_the_memory_gets_of_a_tagger_are_the_logits_of_its_real_tokens(make_module, tmp_path):
    from torch.utils.data import DataLoader

    from cap.training.encode import Computation, take_snapshot

    class Loader(DataLoader):
        def __iter__(self):
            return iter([batch([0, 2, 5]), batch([1, 3, 4])])

    module = make_module()
    on_cpu = Computation(torch.device("cpu"), "32-true", lambda: torch.autocast("cpu", enabled=False))
    loader = Loader([0, 1])
    written = take_snapshot(
        module.student, loader, tmp_path / "s.npy", computation=on_cpu, description="s", with_logits=True
    )
    assert sorted(written) == ["encodings.npy", "lengths.npy", "logits.npy"]
    module.memory.set_snapshot_logits(tmp_path / "s.logits.npy", lengths=tmp_path / "s.lengths.npy")
    stored = module.memory.snapshot_logits(torch.tensor([4, 0]))
    own = module(batch([4, 0])).logits.detach()
    assert stored.shape == (2, 9, N_TAGS)
    torch.testing.assert_close(stored[0, :5].float(), own[0, :5], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(stored[1].float(), own[1], atol=2e-3, rtol=2e-3)


def test_a_batch_without_a_word_teaches_nothing_and_stays_finite(make_module):
    module = make_module(contrast=None)
    terms = terms_of(module, [3])
    assert {name: term.item() for name, term in terms.items()} == {"ce": 0.0, "kd": 0.0}
    sum(terms.values()).backward()


def test_texts_have_no_label_to_be_contrasted_by(make_module):
    first, second = (terms_of(make_module(weight), [0, 1, 5])["prc"].item() for weight in (10.0, 0.0))
    assert first == second > 0


class Known(Ranks):
    """Know how many rows and words each of two processes has."""

    def share(self, n_rows: int) -> Share:
        return Share(self.rank, {2: (2, 3), 3: (2, 3), 4: (4, 7), 7: (4, 7)}[n_rows])


class Silent(Ranks):
    """Fail if another process is asked."""

    def share(self, n_rows: int) -> Share:
        raise AssertionError("another process was asked")


def test_words_weigh_the_same_whatever_process_has_them(make_module):
    expected = terms_of(make_module(contrast=None), [0, 3, 5, 1, 2])
    found = [
        terms_of(make_module(contrast=None, ranks=Known(rank, 2)), ids) for rank, ids in enumerate([[0, 3], [5, 1, 2]])
    ]
    for name, term in expected.items():
        assert sum(terms[name].item() for terms in found) / 2 == pytest.approx(term.item(), rel=1e-5)


def test_a_batch_of_ones_own_asks_no_other_process(make_module):
    made, own = batch([0, 3]), Share(rank=0, counts=(2,))
    losses = [
        module.task_loss(module(made), made, own).item() for module in (make_module(), make_module(ranks=Silent(0, 2)))
    ]
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize("some_without", [False, True], ids=["words", "some texts without a label"])
def test_labels_are_compared_without_asking_the_device(make_module, some_without):
    """Every one of these operators makes a host wait for its GPU."""
    from cap.data.batch import on_device
    from tests.pruning.operators import Calls

    module, made = make_module(), batch([0, 2, 5])
    if some_without:
        made = {name: made[name] for name in ("input_ids", "attention_mask", "example_id")}
        made |= {"labels": torch.tensor([0, 1, -100]), "is_labelled": torch.tensor([True, True, False])}
    moved = on_device(made, torch.device("cpu"))
    output = module(moved)
    if some_without:
        output = output._replace(logits=output.logits[:, 0])
    with Calls() as calls:
        assert module.task_loss(output, moved, Share(rank=0, counts=(3,))) > 0
    # The comparison of this line asks once.
    assert {name: calls.n[name] for name in ("nonzero", "index", "_local_scalar_dense")} == {
        "nonzero": 0,
        "index": 0,
        "_local_scalar_dense": 1,
    }
