from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from cap.base.errors import InputError
from cap.formats.compact import compact
from cap.formats.sparse import load_sparse, pack, save_sparse, unpack
from cap.models.families import prunable_linears
from tests.cases import each_with_the_first
from tests.models.tiny_models import FAMILY_NAMES, tiny_batch, tiny_classifier, tiny_tokenizer

QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def pruned(family: str = "bert", *, sparsity: float = 0.97) -> PreTrainedModel:
    return prune(tiny_classifier(family), sparsity)


def prune(model: PreTrainedModel, sparsity: float) -> PreTrainedModel:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for linear in prunable_linears(model).values():
            linear.weight[torch.rand(linear.weight.shape, generator=draw) < sparsity] = 0.0
    return model


def bits(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone().view(torch.int32) for name, tensor in model.state_dict().items()}


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**tiny_batch()).logits


def saved(folder: Path) -> PreTrainedModel:
    model = pruned()
    save_sparse(model, tiny_tokenizer(), folder)
    return model


def change(folder: Path, **tensors: Tensor | None) -> None:
    """Replace or remove parts of one matrix in the encoder's file."""
    file = folder / "encoder.safetensors"
    changed = load_file(file) | {f"{QUERY}.{part}": tensor for part, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, file, {"cap_sparse": "1"})


@pytest.mark.parametrize(("family", "sparsity"), each_with_the_first(FAMILY_NAMES, [0.97, 0.0, 1.1]))
def test_a_saved_model_loads_bit_by_bit_into_the_stock_class(family: str, sparsity: float, tmp_path: Path) -> None:
    model = pruned(family, sparsity=sparsity)
    save_sparse(model, tiny_tokenizer(), tmp_path)
    loaded = load_sparse(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    torch.testing.assert_close(bits(loaded), bits(model), rtol=0, atol=0)
    assert torch.equal(logits(loaded), logits(model))


def test_every_bit_pattern_survives() -> None:
    smallest = 2.0**-149
    odd = [0.0, -0.0, smallest, -smallest, float("inf"), float("-inf"), float("nan"), 1.0, -3.5]
    weight = torch.tensor([odd, odd[::-1], [0.0] * 9])
    assert torch.equal(unpack(*pack(weight)).view(torch.int32), weight.view(torch.int32))


def test_a_negative_zero_is_kept_and_a_zero_is_not() -> None:
    shape, bitmask, values = pack(torch.tensor([[0.0, -0.0, 2.0], [0.0, 0.0, 3.0]]))
    assert shape.tolist() == [2, 3]
    assert bitmask.tolist() == [0b100110]
    assert torch.equal(values, torch.tensor([-0.0, 2.0, 3.0]))
    assert values[0].signbit()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (1, 9), (9, 1)], ids=str)
def test_the_bits_are_those_of_the_weights_one_by_one(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu()
    _, bitmask, values = pack(weight)
    flat = weight.flatten().tolist()
    expected = [0] * -(-len(flat) // 8)
    for place, number in enumerate(flat):
        expected[place // 8] |= (number != 0) << (place % 8)
    assert bitmask.tolist() == expected
    assert values.tolist() == [number for number in flat if number != 0]


def test_a_weight_that_is_no_block_of_memory_is_packed_by_rows() -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).T
    assert torch.equal(unpack(*pack(weight)), weight)


@pytest.mark.parametrize("sparsity", [0.5, 0.97])
def test_the_file_is_hardly_larger_than_bits_and_kept_values(sparsity: float, tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = prune(BertForSequenceClassification(BertConfig(vocab_size=30, **sizes)), sparsity)
    save_sparse(model, tiny_tokenizer(), tmp_path)
    matrices = [linear.weight for linear in prunable_linears(model).values()]
    n_kept = sum(int(matrix.count_nonzero()) for matrix in matrices)
    bound = sum(matrix.numel() for matrix in matrices) / 8 + 4 * n_kept
    assert (tmp_path / "encoder.safetensors").stat().st_size <= 1.1 * bound


def test_the_two_files_share_the_weights_between_them(tmp_path: Path) -> None:
    model = saved(tmp_path)
    matrices = {f"{name}.weight" for name in prunable_linears(model)}
    parts = {f"{name}.{part}" for name in matrices for part in ("shape", "bitmask", "values")}
    assert set(load_file(tmp_path / "encoder.safetensors")) == parts
    assert set(load_file(tmp_path / "rest.safetensors")) == set(model.state_dict()) - matrices


def test_the_configuration_is_the_stock_one(tmp_path: Path) -> None:
    model = saved(tmp_path / "sparse")
    model.save_pretrained(tmp_path / "plain")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("sparse", "plain")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_compact_model_is_stored_and_loaded_as_compact(family: str, tmp_path: Path) -> None:
    smaller = compact(pruned(family)).model
    save_sparse(smaller, tiny_tokenizer(), tmp_path)
    loaded = load_sparse(tmp_path)
    torch.testing.assert_close(bits(loaded), bits(smaller), rtol=0, atol=0)
    assert loaded.config.cap_layout == smaller.config.cap_layout


def test_a_loaded_model_can_be_trained(tmp_path: Path) -> None:
    saved(tmp_path)
    model = load_sparse(tmp_path).train()
    before = bits(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**tiny_batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    optimizer.step()
    changed = {name for name, after in bits(model).items() if not torch.equal(after, before[name])}
    assert changed >= {f"{name}.weight" for name in prunable_linears(model)}


@pytest.mark.parametrize("prepare", [lambda model: model.half(), lambda model: model.double()], ids=["half", "double"])
def test_other_precisions_are_refused(prepare, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be float32 .* got torch\.float"):
        save_sparse(prepare(pruned()), tiny_tokenizer(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_masks_must_be_folded_first(tmp_path: Path) -> None:
    model = pruned()
    parametrize.register_parametrization(model.bert.encoder.layer[0].output.dense, "weight", nn.Identity())
    with pytest.raises(ValueError, match=r"layer\.0\.output\.dense\.weight must be .* got a mask on it"):
        save_sparse(model, tiny_tokenizer(), tmp_path)


@pytest.mark.parametrize("file", ["encoder.safetensors", "rest.safetensors"])
@pytest.mark.parametrize("n_bytes", [0, 5, 1000, -4], ids=["empty", "header_cut", "names_cut", "end_cut"])
def test_files_that_are_cut_off_are_refused(file: str, n_bytes: int, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:n_bytes])
    with pytest.raises(InputError, match=f"{file} must be a whole safetensors file"):
        load_sparse(tmp_path)


@pytest.mark.parametrize("file", ["encoder.safetensors", "rest.safetensors"])
def test_missing_files_are_refused(file: str, tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=f"must hold the weights in {file}"):
        load_sparse(tmp_path)


@pytest.mark.parametrize("metadata", [{"cap_sparse": "2"}, {}], ids=["newer", "none"])
def test_another_version_is_refused_by_its_name(metadata: dict[str, str], tmp_path: Path) -> None:
    saved(tmp_path)
    save_file(load_file(tmp_path / "encoder.safetensors"), tmp_path / "encoder.safetensors", metadata)
    with pytest.raises(InputError, match=rf"must be of version 1 .* got version {metadata.get('cap_sparse')!r}"):
        load_sparse(tmp_path)


# The query matrix has 32 x 32 weights: 128 bytes of bits.
@pytest.mark.parametrize(
    "tensors",
    [
        {"values": torch.zeros(3)},
        {"bitmask": torch.zeros(128, dtype=torch.uint8)},
        {"bitmask": torch.zeros(127, dtype=torch.uint8), "values": torch.zeros(0)},
        {"shape": torch.tensor([32, 31])},
        {"shape": torch.tensor([-32, -32])},
        {"values": None},
    ],
    ids=["fewer_values", "fewer_bits", "fewer_bytes", "other_shape", "negative", "missing"],
)
def test_parts_that_do_not_belong_together_are_refused(tensors: dict[str, Tensor | None], tmp_path: Path) -> None:
    saved(tmp_path)
    change(tmp_path, **tensors)
    with pytest.raises(InputError, match=f"for {QUERY} in"):
        load_sparse(tmp_path)


def test_bits_behind_the_last_weight_are_refused() -> None:
    shape, bitmask, values = pack(torch.tensor([[1.0, 0.0, 2.0]]))
    with pytest.raises(ValueError, match="1 x 3"):
        unpack(shape, bitmask + 8, torch.cat([values, values[:1]]))


def test_a_matrix_of_another_model_is_refused_with_the_shapes(tmp_path: Path) -> None:
    saved(tmp_path)
    shape, bitmask, values = pack(torch.ones(8, 32))
    change(tmp_path, shape=shape, bitmask=bitmask, values=values)
    with pytest.raises(InputError, match=rf"{QUERY} \(8, 32\) for \(32, 32\)"):
        load_sparse(tmp_path)
