from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch


@pytest.fixture
def model(tiny_model):
    from cap.base.kinds import Head
    from cap.models.encoders import load_model
    from cap.models.pooled import PooledModel
    from cap.models.sources import ModelSource

    torch.manual_seed(0)
    loaded = load_model(ModelSource(str(tiny_model), "tiny"), head=Head("classes", ("no", "yes")))
    return PooledModel(loaded.model, "pooler").train()


@pytest.fixture
def reader(tiny_model):
    from cap.base.kinds import Head
    from cap.models.encoders import load_model
    from cap.models.pooled import PooledModel
    from cap.models.sources import ModelSource

    torch.manual_seed(0)
    loaded = load_model(ModelSource(str(tiny_model), "tiny"), head=Head("span"))
    return PooledModel(loaded.model, "first_token").train()


def batch(ids: list[int]) -> dict[str, torch.Tensor]:
    tokens = torch.tensor([[2, 5 + row % 10, 7, 3] for row in ids])
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.zeros(len(ids), dtype=torch.int64),
        "example_id": torch.tensor(ids),
    }


# Tokens of each window, not in the order of the ids.
N_TOKENS = (5, 2, 9, 3, 9)


def windows(ids: list[int], *, width: int | None = None) -> dict[str, torch.Tensor]:
    width = width or max(N_TOKENS[row] for row in ids)
    mask = torch.tensor([[int(token < N_TOKENS[row]) for token in range(width)] for row in ids])
    tokens = torch.tensor([[5 + (3 * row + token) % 15 for token in range(width)] for row in ids])
    return {
        "input_ids": tokens * mask,
        "attention_mask": mask,
        "labels": torch.zeros(len(ids), 2, dtype=torch.int64),
        "example_id": torch.tensor(ids),
        "group_id": torch.tensor([row // 2 for row in ids]),
    }


def loader(batches):
    from torch.utils.data import DataLoader

    return DataLoader(batches, batch_size=None)


@pytest.fixture
def encode(tmp_path):
    """Encode batches without a cache: give the encodings, and the logits with their lengths."""
    n_calls = itertools.count()

    def encode_with(model, batches):
        outputs = frozen(model, batches, tmp_path / f"own-{next(n_calls)}")
        lengths = None if outputs.lengths is None else np.load(outputs.lengths)
        return np.load(outputs.encodings), SimpleNamespace(values=np.load(outputs.logits), lengths=lengths)

    return encode_with


def frozen(model, batches, cache_dir, **changes):
    from cap.training.encode import Computation, frozen_outputs

    computation = Computation(torch.device("cpu"), changes.get("precision", "32-true"), nullcontext)
    return frozen_outputs(
        model,
        loader(batches),
        data_key=changes.get("data_key", "rows"),
        cache_dir=cache_dir,
        computation=computation,
        description="encoding",
        with_logits=changes.get("with_logits", True),
        with_hidden=changes.get("with_hidden", False),
    )


def test_rows_come_back_in_the_order_of_their_ids(encode, model):
    shuffled, _ = encode(model, [batch([3, 0]), batch([2, 1])])
    ordered, _ = encode(model, [batch([0, 1]), batch([2, 3])])
    np.testing.assert_allclose(shuffled, ordered, atol=1e-3)


def test_encodings_have_length_one_and_are_float16(encode, model):
    encodings, logits = encode(model, [batch([0, 1, 2])])
    assert (encodings.dtype, logits.values.dtype) == (np.float16, np.float16)
    np.testing.assert_allclose(np.linalg.norm(encodings.astype(np.float64), axis=1), 1.0, atol=2e-3)


def test_model_is_encoded_in_eval_mode_and_left_in_its_own(encode, model):
    first, _ = encode(model, [batch([0, 1])])
    second, _ = encode(model, [batch([0, 1])])
    np.testing.assert_array_equal(first, second)  # dropout would differ
    assert model.training


@pytest.mark.parametrize("ids", [[[0, 1], [1]], [[0, 2]], [[1, 2]]], ids=["twice", "gap", "no zero"])
def test_rows_that_are_not_each_there_once_are_refused(encode, model, ids):
    with pytest.raises(ValueError, match="exactly once"):
        encode(model, [batch(rows) for rows in ids])


def test_logits_of_classes_have_no_lengths(encode, model):
    _, logits = encode(model, [batch([2, 0, 1])])
    assert (logits.values.shape, logits.lengths) == ((3, 2), None)


@pytest.mark.parametrize(
    "ids", [[[0, 1, 2, 3, 4]], [[2, 4], [0, 3], [1]], [[3], [1, 0], [4, 2]]], ids=["in order", "longest first", "mixed"]
)
def test_logits_of_spans_are_those_of_each_window_alone_in_the_order_of_ids(encode, reader, ids):
    encodings, logits = encode(reader, [windows(rows) for rows in ids])
    with torch.no_grad():
        alone = [reader.eval()(windows([row])) for row in range(len(N_TOKENS))]
    assert logits.lengths.tolist() == list(N_TOKENS)
    np.testing.assert_allclose(logits.values, torch.cat([output.logits[0] for output in alone]), atol=1e-3)
    pooled = torch.nn.functional.normalize(torch.cat([output.pooled for output in alone]), dim=1)
    np.testing.assert_allclose(encodings, pooled, atol=1e-3)


def test_types_of_span_logits_are_those_that_the_memory_takes(encode, reader):
    _, logits = encode(reader, [windows([1, 0])])
    assert (logits.values.dtype, logits.lengths.dtype) == (np.float16, np.int64)


def test_padding_of_a_batch_changes_no_stored_logit(encode, reader):
    _, narrow = encode(reader, [windows([1, 0])])
    _, wide = encode(reader, [windows([1, 0], width=12)])
    assert narrow.lengths.tolist() == wide.lengths.tolist()
    np.testing.assert_allclose(narrow.values, wide.values, atol=1e-3)


def test_second_call_with_the_same_content_computes_nothing(model, tmp_path):
    first = frozen(model, [batch([0, 1])], tmp_path)
    second = frozen(model, [], tmp_path)
    assert not first.was_cached
    assert second.was_cached
    assert second.encodings == first.encodings


@pytest.mark.parametrize(
    "change", [{"data_key": "others"}, {"precision": "bf16-mixed"}, {"weight": 1.0}, {"pooling": "mean"}]
)
def test_other_content_has_an_entry_of_its_own(model, tmp_path, change):
    first = frozen(model, [batch([0, 1])], tmp_path)
    with torch.no_grad():
        next(model.parameters()).add_(change.get("weight", 0.0))
    model.pooling = change.get("pooling", "pooler")
    second = frozen(model, [batch([0, 1])], tmp_path, **change)
    assert not second.was_cached
    assert second.encodings != first.encodings


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no list"])
def test_damaged_entry_is_made_again_and_said(model, tmp_path, damage, caplog):
    first = frozen(model, [batch([0, 1])], tmp_path)
    good = first.encodings.read_bytes()
    damaged = {"truncated": good[:-4], "flipped": good[:-1] + bytes([good[-1] ^ 1])}
    if damage in damaged:
        first.encodings.write_bytes(damaged[damage])
    else:
        (first.encodings if damage == "missing" else first.encodings.parent / "meta.json").unlink()
    second = frozen(model, [batch([0, 1])], tmp_path)
    assert not second.was_cached
    assert second.encodings.read_bytes() == good
    assert "damaged" in caplog.text


def test_head_of_a_model_without_logits_is_no_part_of_its_content(model, tmp_path):
    first = frozen(model, [batch([0, 1])], tmp_path, with_logits=False)
    with torch.no_grad():
        model.model.classifier.weight.add_(1.0)  # as another seed would draw it
    second = frozen(model, [], tmp_path, with_logits=False)
    assert first.logits is None
    assert second.was_cached


@pytest.mark.parametrize("with_logits", [True, False], ids=["with logits", "encodings alone"])
def test_equal_weights_with_another_activation_are_encoded_again(model, tmp_path, with_logits):
    frozen(model, [batch([0, 1])], tmp_path, with_logits=with_logits)
    model.model.config.hidden_act = "relu"
    assert not frozen(model, [batch([0, 1])], tmp_path, with_logits=with_logits).was_cached


def test_entry_of_another_format_is_made_again(model, tmp_path, monkeypatch):
    from cap.training import encode

    frozen(model, [batch([0, 1])], tmp_path)
    monkeypatch.setattr(encode, "FORMAT", 0)
    assert not frozen(model, [batch([0, 1])], tmp_path).was_cached


def test_entry_of_classes_holds_the_files_it_always_held(model, tmp_path):
    outputs = frozen(model, [batch([0, 1])], tmp_path)
    found = {path.name for path in outputs.encodings.parent.iterdir()}
    assert (found, outputs.lengths) == ({"encodings.npy", "logits.npy", "meta.json"}, None)


def test_key_of_an_entry_is_made_of_what_it_always_was(model, tmp_path):
    from cap.base.files import content_key
    from cap.models.encoders import model_key
    from cap.training.encode import FORMAT

    names = ["encodings.npy", "logits.npy"]
    key = content_key([FORMAT, model_key(model.model), names, "pooler", "rows", "32-true", "cpu"])
    assert frozen(model, [batch([0, 1])], tmp_path).encodings.parent == tmp_path / "encodings" / key


def test_entry_of_spans_is_found_again_with_its_lengths(reader, tmp_path):
    first = frozen(reader, [windows([1, 0])], tmp_path)
    second = frozen(reader, [], tmp_path)
    assert (second.was_cached, second.lengths) == (True, first.lengths)
    np.testing.assert_array_equal(np.load(second.lengths), N_TOKENS[:2])


def test_memory_takes_the_files_of_an_entry_of_spans(reader, tmp_path):
    from cap.base.memory_budget import MemoryBudget
    from cap.objectives.memory import Memory

    outputs = frozen(reader, [windows([2, 0]), windows([1])], tmp_path)
    memory = Memory(n_examples=3, budget=MemoryBudget(1.0))
    memory.set_teacher_logits(outputs.logits, lengths=outputs.lengths)
    with torch.no_grad():
        expected = reader.eval()(windows([1, 0])).logits
    expected[0, N_TOKENS[1] :] = 0.0
    torch.testing.assert_close(memory.teacher_logits(torch.tensor([1, 0])).float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-8])], ids=["missing", "truncated"]
)
def test_damaged_lengths_are_made_again(reader, tmp_path, damage):
    first = frozen(reader, [windows([1, 0])], tmp_path)
    good = first.lengths.read_bytes()
    damage(first.lengths)
    second = frozen(reader, [windows([1, 0])], tmp_path)
    assert (second.was_cached, second.lengths.read_bytes()) == (False, good)


def test_entry_of_spans_without_logits_holds_no_lengths(reader, tmp_path):
    assert frozen(reader, [windows([1, 0])], tmp_path, with_logits=False).lengths is None


def slow_means(model, row: int) -> np.ndarray:
    """Average what transformers itself gives for one row, without padding, token by token."""
    alone = {name: value for name, value in windows([row]).items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        layers = model.eval().model(**alone, output_hidden_states=True).hidden_states[1:]
    return np.stack([sum(layer[0].double()) / N_TOKENS[row] for layer in layers])


@pytest.mark.parametrize("ids", [[[0, 1, 2, 3, 4]], [[2, 4], [0, 3], [1]]], ids=["one batch", "mixed"])
def test_hidden_states_are_the_means_over_real_tokens_in_the_order_of_ids(reader, tmp_path, ids):
    outputs = frozen(reader, [windows(rows, width=12) for rows in ids], tmp_path, with_hidden=True)
    hidden = np.load(outputs.hidden)
    assert (hidden.dtype, hidden.shape) == (np.float16, (len(N_TOKENS), 2, 32))
    np.testing.assert_allclose(hidden, [slow_means(reader, row) for row in range(len(N_TOKENS))], atol=2e-3)


def test_entry_with_hidden_states_is_found_again_and_holds_the_rest_unchanged(model, tmp_path):
    plain = frozen(model, [batch([0, 1])], tmp_path)
    first = frozen(model, [batch([0, 1])], tmp_path, with_hidden=True)
    second = frozen(model, [], tmp_path, with_hidden=True)
    assert (plain.hidden, first.was_cached, second.was_cached) == (None, False, True)
    assert second.hidden == first.hidden
    assert first.encodings.read_bytes() == plain.encodings.read_bytes()
    assert first.logits.read_bytes() == plain.logits.read_bytes()


def test_damaged_hidden_states_are_made_again(model, tmp_path):
    first = frozen(model, [batch([0, 1])], tmp_path, with_hidden=True)
    good = first.hidden.read_bytes()
    first.hidden.write_bytes(good[:-2])
    second = frozen(model, [batch([0, 1])], tmp_path, with_hidden=True)
    assert (second.was_cached, second.hidden.read_bytes()) == (False, good)
