from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch


@pytest.fixture
def model(tiny_model):
    from cap.heads import Head
    from cap.models.encoders import ModelSource, PooledModel, load_model

    torch.manual_seed(0)
    loaded = load_model(ModelSource(str(tiny_model), "tiny"), head=Head("classes", ("no", "yes")))
    return PooledModel(loaded.model, "pooler").train()


def batch(ids: list[int]) -> dict[str, torch.Tensor]:
    tokens = torch.tensor([[2, 5 + row % 10, 7, 3] for row in ids])
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": torch.zeros(len(ids), dtype=torch.int64),
        "example_id": torch.tensor(ids),
    }


def loader(batches):
    from torch.utils.data import DataLoader

    return DataLoader(batches, batch_size=None)


def encode(model, batches):
    from cap.training.encode import encode_rows

    return encode_rows(model, loader(batches), device=torch.device("cpu"), description="rows")


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
    )


def test_rows_come_back_in_the_order_of_their_ids(model):
    shuffled, _ = encode(model, [batch([3, 0]), batch([2, 1])])
    ordered, _ = encode(model, [batch([0, 1]), batch([2, 3])])
    np.testing.assert_allclose(shuffled, ordered, atol=1e-3)


def test_encodings_have_length_one_and_are_float16(model):
    encodings, logits = encode(model, [batch([0, 1, 2])])
    assert (encodings.dtype, logits.dtype) == (np.float16, np.float16)
    np.testing.assert_allclose(np.linalg.norm(encodings.astype(np.float64), axis=1), 1.0, atol=2e-3)


def test_model_is_encoded_in_eval_mode_and_left_in_its_own(model):
    first, _ = encode(model, [batch([0, 1])])
    second, _ = encode(model, [batch([0, 1])])
    np.testing.assert_array_equal(first, second)  # dropout would differ
    assert model.training


@pytest.mark.parametrize("ids", [[[0, 1], [1]], [[0, 2]], [[1, 2]]], ids=["twice", "gap", "no zero"])
def test_rows_that_are_not_each_there_once_are_refused(model, ids):
    with pytest.raises(ValueError, match="exactly once"):
        encode(model, [batch(rows) for rows in ids])


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
