from __future__ import annotations

import pytest
import torch

from cap.formats.compact import compact
from cap.formats.cost import ModelCost, count_cost
from cap.models.families import prunable
from tests.cases import each_with_the_first
from tests.models.tiny_models import FAMILY_NAMES, GATED, HIDDEN, LAYERS, n_prunable, tiny_classifier


@pytest.mark.parametrize(("family", "tokens"), each_with_the_first(FAMILY_NAMES, [7, 1, 128]))
def test_a_dense_model_costs_what_the_closed_form_says(family: str, tokens: int) -> None:
    model = tiny_classifier(family)
    linear = n_prunable(family) // LAYERS
    assert count_cost(model, tokens=tokens) == ModelCost(
        parameters=model.num_parameters(),
        prunable_parameters=LAYERS * linear,
        multiply_adds=LAYERS * (tokens * linear + 2 * tokens**2 * HIDDEN),
    )


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "modernbert", "gte"])
def test_fewer_units_cost_less_by_their_own_part(family: str) -> None:
    model = tiny_classifier(family)
    with torch.no_grad():
        first = next(iter(prunable(model).heads.values()))
        first.outgoing.weight[:, : HIDDEN // 4] = 0.0
        second = list(prunable(model).ffn.values())[1]
        second.outgoing.weight[:, :10] = 0.0
    before, after = count_cost(model, tokens=9), count_cost(compact(model).model, tokens=9)
    n_in = 2 if family in GATED else 1
    n_weights = 4 * HIDDEN * (HIDDEN // 4) + (n_in + 1) * 10 * HIDDEN
    n_biases = {"modernbert": 0, "gte": 3 * (HIDDEN // 4)}.get(family, 3 * (HIDDEN // 4) + 10)
    assert before.prunable_parameters - after.prunable_parameters == n_weights
    assert before.parameters - after.parameters == n_weights + n_biases
    assert before.multiply_adds - after.multiply_adds == 9 * n_weights + 2 * 9**2 * (HIDDEN // 4)


def test_torch_counts_the_same_multiply_adds() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_classifier("bert")
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.bert.encoder(torch.zeros(1, 9, HIDDEN))
    assert counter.get_total_flops() == 2 * count_cost(model, tokens=9).multiply_adds


def test_a_zero_costs_as_much_as_any_weight() -> None:
    model = tiny_classifier()
    before = count_cost(model, tokens=4)
    with torch.no_grad():
        for linear in prunable(model).linears.values():
            linear.weight.zero_()
    assert count_cost(model, tokens=4) == before


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_row_has_tokens(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"at least one token, got {tokens}"):
        count_cost(tiny_classifier(), tokens=tokens)
