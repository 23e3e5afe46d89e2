from __future__ import annotations

import pytest
import torch
from torch import nn

import cap
from cap.base.errors import InputError
from tests.models.tiny_models import FAMILY_NAMES, tiny_batch, tiny_classifier


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_bare_encoder_has_the_matrices_of_one_with_a_head(family):
    classifier = tiny_classifier(family)
    prefix = f"{classifier.base_model_prefix}."
    whole = cap.attach(tiny_classifier(family), cap.Magnitude())
    bare = cap.attach(classifier.base_model, cap.Magnitude())
    assert [f"{prefix}{name}" for name in bare.masks] == list(whole.masks)


def test_bare_encoder_is_pruned_folded_saved_and_loaded(tmp_path):
    from transformers import AutoModel

    model = tiny_classifier().base_model
    pruner = cap.attach(model, cap.Structured(final_sparsity=0.5, importance="random"))
    counts = pruner.update_masks(0.5)
    names = list(pruner.masks)
    pruner.fold()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert sum(int((loaded.get_submodule(name).weight == 0).sum()) for name in names) == counts.n_pruned
    assert counts.sparsity == 0.5


def test_parts_of_a_bare_encoder_are_found():
    from cap.models.families import parameters_of

    model = tiny_classifier().base_model
    names = parameters_of(model, ["embeddings", "head"])
    assert names == [name for name, _ in model.named_parameters() if name.startswith("embeddings.")]


def test_linear_layers_of_any_module_can_be_named():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
    pruner = cap.attach(model, cap.Magnitude(), linears={"0": model[0]})
    pruner.update_masks(0.5)
    pruner.fold()
    assert [int((model[i].weight == 0).sum()) for i in (0, 2)] == [30, 0]


def test_seed_decides_what_is_drawn():
    drawn = []
    for seed in (0, 0, 1):
        pruner = cap.attach(tiny_classifier(), cap.Random(), seed=seed)
        pruner.update_masks(0.5)
        drawn.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_masked_model_computes_as_before():
    model = tiny_classifier()
    before = model(**tiny_batch()).logits
    cap.attach(model, cap.Movement())
    torch.testing.assert_close(model(**tiny_batch()).logits, before)


class Alien(nn.Module):
    pass


def with_a_shared_weight():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    model[1].weight = model[0].weight
    return model, cap.Magnitude(), {"1": model[1]}


def in_half_precision():
    model = tiny_classifier().bfloat16()
    return model, cap.Movement(), None


# A subclass that computes something else with its weight.
tied = nn.Sequential(nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (Alien(), cap.Magnitude(), None), r"got Alien; name them: linears="),
        (lambda: (nn.Linear(2, 2), cap.Magnitude(), {}), r"got none; name them: linears=.*type\(module\) is nn.Linear"),
        (
            lambda: (nn.Sequential(nn.Linear(2, 2)), cap.Magnitude(), {"0": nn.Linear(2, 2)}),
            r"got 0 \(.*Linear\); name them",
        ),
        (lambda: (tied, cap.Magnitude(), {"0": tied[0]}), r"got 0 \(.*Linear\); name them"),
        (
            lambda: (Alien(), cap.Structured(final_sparsity=0.5), {"0": nn.Linear(2, 2)}),
            r"Structured prunes heads and FFN units",
        ),
        (with_a_shared_weight, r"that of 1 is 0.weight and 1.weight; leave 1 out"),
        (in_half_precision, r"12 of 12 are in half precision, .* dtype=torch.float32"),
    ],
    ids=["unknown", "nothing", "another", "not-plain", "units", "shared", "half"],
)
def test_what_cannot_be_pruned_is_refused(make, message):
    model, pruner, linears = make()
    with pytest.raises(InputError, match=message):
        cap.attach(model, pruner, linears=linears)


def test_second_pruner_on_a_model_is_refused():
    model = tiny_classifier()
    cap.attach(model, cap.Magnitude())
    with pytest.raises(InputError, match=r"12 of 12 have a parametrization already"):
        cap.attach(model, cap.Magnitude())


@pytest.mark.parametrize(
    "make",
    [cap.Admm, lambda **o: cap.Structured(importance="random", **o), cap.Layers],
    ids=["weights", "units", "layers"],
)
@pytest.mark.parametrize("is_folded", [False, True])
def test_a_pruner_that_was_on_a_model_is_taken_for_no_other(make, is_folded):
    pruner = cap.attach(tiny_classifier(), make(final_sparsity=0.5))
    if is_folded:
        pruner.fold()
    with pytest.raises(InputError, match=rf"a pruner is for one model, got a {type(pruner).__name__} that was"):
        cap.attach(tiny_classifier(), pruner)


@pytest.mark.parametrize(
    "make",
    [cap.Admm, lambda **o: cap.Structured(importance="random", **o), cap.Layers],
    ids=["weights", "units", "layers"],
)
def test_masks_that_are_folded_are_missed_and_folding_again_changes_nothing(make):
    from cap.pruning.moves import MaskMoves

    model = tiny_classifier()
    pruner = cap.attach(model, make(final_sparsity=0.5))
    assert pruner.is_on
    pruner.update_masks(0.5)
    pruner.fold()
    assert not pruner.is_on
    folded = {name: value.clone() for name, value in model.state_dict().items()}
    pruner.fold()
    again = model.state_dict()
    assert again.keys() == folded.keys()
    assert all(torch.equal(again[name], value) for name, value in folded.items())
    with pytest.raises(ValueError, match=r"has no masks to move: .* or are folded"):
        MaskMoves(pruner, cap.OneShot(sparsity=0.5)).begin(10)
    with pytest.raises(ValueError, match=r"or are folded; .* pruner.folded_state\(model\) is its state as fold would"):
        pruner.update_masks(0.5)


def test_masks_that_were_never_put_on_do_not_move():
    with pytest.raises(ValueError, match="Magnitude has no masks to move: they were never put on a model"):
        cap.Magnitude().update_masks(0.5)


@pytest.mark.parametrize(
    ("make", "sparsity", "said"),
    [
        (cap.Magnitude, 90, r"lies in \[0, 1\), got 90; did you mean 0.9\?"),
        (lambda: cap.Magnitude(pattern="2:4"), 0.6, "Magnitude as it was made ends at a sparsity of 0.5, got a target"),
        (lambda: cap.Layers(final_sparsity=0.5), 0.75, "Layers as it was made ends at a sparsity of 0.5"),
        (lambda: cap.Structured(final_sparsity=0.5, importance="random"), 0.9, "Structured as it was made ends at"),
        (
            lambda: cap.Admm(final_sparsity=0.5),
            0.9,
            "Admm as it was made ends at a sparsity of 0.5, got a target of 0.9",
        ),
    ],
    ids=["percent", "pattern", "layers", "units", "admm"],
)
def test_a_target_that_cannot_be_meant_is_refused_and_moves_nothing(make, sparsity, said):
    pruner = cap.attach(tiny_classifier(), make())
    with pytest.raises(ValueError, match=said):
        pruner.update_masks(sparsity)
    assert all(bool(mask.all()) for mask in pruner.masks.values())


@pytest.mark.parametrize("make", [cap.Magnitude, lambda: cap.Layers(final_sparsity=0.5)], ids=["weights", "layers"])
def test_masks_on_another_model_than_the_one_that_is_trained_are_refused(make):
    model = tiny_classifier()
    pruner = cap.attach(model, make())
    pruner.require_on(torch.nn.ModuleDict({"within": model}))
    with pytest.raises(ValueError, match=r"must be on the model that is trained, but .* are no part of it"):
        pruner.require_on(tiny_classifier())


def test_units_want_a_schedule_with_levels():
    from cap.pruning.moves import MaskMoves

    pruner = cap.attach(tiny_classifier(), cap.Structured(final_sparsity=0.5, importance="random"))
    with pytest.raises(ValueError, match="prunes at levels with retraining in between, got Cubic that rises in every"):
        MaskMoves(pruner, cap.Cubic(sparsity=0.5))
    MaskMoves(pruner, cap.Cubic(sparsity=0.5, n_prunings=2))


@pytest.mark.parametrize("make", [cap.Magnitude, lambda: cap.Structured(final_sparsity=0.5, importance="random")])
def test_a_folded_pruner_knows_its_masks_from_those_of_the_next(make):
    model = tiny_classifier()
    first = cap.attach(model, make())
    first.fold()
    second = cap.attach(model, make())
    assert (first.is_on, second.is_on) == (False, True)
    first.fold()
    assert second.is_on


def test_a_copy_keeps_its_masks_when_the_model_is_folded():
    import copy

    model = tiny_classifier()
    pruner = cap.attach(model, cap.Magnitude())
    pruner.update_masks(0.5)
    copied = copy.deepcopy(model)
    before = copied(**tiny_batch()).logits
    pruner.fold()
    torch.testing.assert_close(copied(**tiny_batch()).logits, before, atol=0, rtol=0)
    torch.testing.assert_close(model(**tiny_batch()).logits, before, atol=0, rtol=0)


def test_model_that_cannot_meet_the_target_is_refused():
    with pytest.raises(ValueError, match=r"reaches sparsity 0.75 at most"):
        cap.attach(tiny_classifier(), cap.Structured(final_sparsity=0.9))


def test_wrong_objects_are_named():
    model = nn.Sequential(nn.Linear(4, 4))
    linears = {"0": model[0]}
    with pytest.raises(InputError, match=r"an object such as cap.Magnitude\(\), got the class Magnitude"):
        cap.attach(model, cap.Magnitude, linears=linears)
    with pytest.raises(InputError, match=r"got a list; name them: linears="):
        cap.attach(model, cap.Magnitude(), linears=[model[0]])
    pruner = cap.attach(model, cap.Magnitude(), linears=linears)
    with pytest.raises(InputError, match=r"1 of 1 have a parametrization already, 0 first; fold the pruner before"):
        cap.attach(model, cap.Magnitude(), linears=linears)
    with pytest.raises(ValueError, match=r"plan must be a schedule such as cap.Cubic\(sparsity=0.9\), got 0.5"):
        cap.PruningCallback(pruner, 0.5)


def test_linear_layers_of_other_classes_are_named_with_theirs():
    attention = nn.MultiheadAttention(4, 2)
    with pytest.raises(InputError, match=r"got out_proj \(NonDynamicallyQuantizableLinear\)"):
        cap.attach(attention, cap.Magnitude(), linears={"out_proj": attention.out_proj})


def test_masks_that_were_never_put_on_are_missed_before_the_first_step():
    from cap.pruning.moves import MaskMoves

    with pytest.raises(ValueError, match=r"Magnitude has no masks to move: they were never put on a model"):
        MaskMoves(cap.Magnitude(), cap.Cubic(sparsity=0.9)).begin(10)
