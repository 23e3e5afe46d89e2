from __future__ import annotations

import pytest
import torch

SHAPE = (6, 20)


def hash_of(mask: torch.Tensor) -> int:
    from cap.training.callbacks.agreement import hash_masks

    return int(hash_masks({"matrix": mask})[0])


def some_mask(seed: int = 0) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) > 0.5


def test_equal_masks_have_equal_hashes():
    assert hash_of(some_mask()) == hash_of(some_mask().clone())


def test_any_one_entry_changes_the_hash():
    hashes = {hash_of(some_mask())}
    for entry in range(SHAPE[0] * SHAPE[1]):
        mask = some_mask()
        mask.view(-1)[entry] ^= True
        hashes.add(hash_of(mask))
    assert len(hashes) == 1 + SHAPE[0] * SHAPE[1]


def test_two_entries_that_change_places_change_the_hash():
    first, second = torch.zeros(SHAPE, dtype=torch.bool), torch.zeros(SHAPE, dtype=torch.bool)
    first[0, 3] = second[4, 3] = True
    assert hash_of(first) != hash_of(second)


def test_changes_that_balance_in_evenly_spaced_words_change_the_hash():
    # With weights that rise evenly, + - - + at four neighbouring words would cancel.
    first, second = torch.zeros(64, dtype=torch.bool), torch.zeros(64, dtype=torch.bool)
    first[[0, 24]] = True
    second[[8, 16]] = True
    assert hash_of(first) != hash_of(second)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 4096 * 8 + 3])
def test_any_number_of_entries_is_hashed(n):
    from cap.training.callbacks.agreement import hash_masks

    masks = {"kept": torch.ones(n, dtype=torch.bool), "last pruned": torch.arange(n) < n - 1}
    kept, pruned = hash_masks(masks).tolist()
    assert kept != pruned


def test_a_view_has_the_hash_of_its_entries():
    mask = some_mask()
    assert hash_of(mask.T) == hash_of(mask.T.contiguous())


def test_every_mask_has_its_own_hash_in_their_order():
    from cap.training.callbacks.agreement import hash_masks

    masks = {"first": some_mask(0), "second": some_mask(1)}
    assert hash_masks(masks).tolist() == [hash_of(some_mask(0)), hash_of(some_mask(1))]


def test_one_process_has_nobody_to_agree_with():
    from lightning.pytorch import LightningModule, Trainer

    from cap.training.callbacks.agreement import MaskAgreement

    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    MaskAgreement().on_train_batch_start(trainer, LightningModule(), {}, 0)


def test_the_error_names_the_first_matrix_and_the_ranks_that_differ():
    from cap.base.errors import RunError
    from cap.training.callbacks.agreement import hash_masks, require_equal
    from cap.training.parallel.ranks import Ranks

    masks = {name: some_mask(seed) for seed, name in enumerate(["query", "key", "value"])}
    others = masks | {"key": some_mask(8), "value": some_mask(9)}

    class FourProcesses(Ranks):
        def gather_rows(self, rows, *, counts=None):
            return torch.cat([rows, hash_masks(others)[None], rows, hash_masks(others)[None]])

    with pytest.raises(RunError, match=r"at step 7 the mask of key on rank 1, 3 is not that on rank 0 \(2 of 3"):
        require_equal(masks, 7, FourProcesses(0, 4))


def test_masks_are_compared_where_they_move_and_at_both_ends():
    import cap
    from cap.pruning.moves import MaskMoves
    from cap.training.callbacks.agreement import MaskAgreement
    from tests.models.tiny_models import tiny_classifier

    pruner = cap.attach(tiny_classifier(), cap.Magnitude())
    moves = MaskMoves(pruner, cap.Cubic(sparsity=0.5, flat_before=0.2, flat_after=0.3), every_n_steps=3)
    moves.begin(20)
    agreement, moved, compared = MaskAgreement(moves), [], []
    for step in range(7, 20):  # a run that was resumed
        if moves.is_due(step):
            moved.append(step)
        moves.advance(step)
        if agreement.is_due(step, 20):
            compared.append(step)
        agreement._last_step = step
        assert not agreement.is_due(step, 20)  # a second batch of the same step
    assert len(moved) > 1
    assert compared == sorted({7, *moved, 19})
    assert len(compared) < 13


@pytest.mark.parametrize("kind", ["heads", "ffn"])
def test_keys_of_structured_masks_tell_every_pruned_unit(kind):
    from cap.models.families import prunable
    from cap.pruning.structured import Structured
    from cap.training.callbacks.agreement import hash_masks
    from tests.models.tiny_models import tiny_classifier

    model = tiny_classifier()
    units = next(iter(getattr(prunable(model), kind).values()))
    pruner = Structured(importance="random", importance_rows=None, importance_loss="total", final_sparsity=0.5)
    pruner.attach(prunable(model), seed=0)
    before = hash_masks(pruner.mask_keys)
    gates = units.outgoing.get_parameter("parametrizations.weight.0.gates")
    with torch.no_grad():
        gates[-1] = 0
    assert int((hash_masks(pruner.mask_keys) != before).sum()) == 1
