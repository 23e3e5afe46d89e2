from __future__ import annotations

import math

import pytest

import cap
from cap.pruning.moves import MaskMoves
from tests.models.tiny_models import tiny_classifier


def test_pruner_and_schedule_of_two_sparsities_are_refused():
    with pytest.raises(ValueError, match=r"final_sparsity=0.5 of SoftMovement and sparsity=0.9 of Cubic"):
        MaskMoves(cap.SoftMovement(final_sparsity=0.5), cap.Cubic(sparsity=0.9))


def test_run_without_end_is_refused():
    with pytest.raises(ValueError, match="a run without end; set max_steps"):
        MaskMoves(cap.Magnitude(), cap.Cubic(sparsity=0.9)).begin(math.inf)


def test_masks_move_once_a_step_and_reach_the_target():
    moves = MaskMoves(cap.attach(tiny_classifier(), cap.Magnitude(scope="global")), cap.Cubic(sparsity=0.9))
    moves.begin(10)
    seen = []
    for step in range(10):
        for _ in range(2):
            moves.advance(step)
            assert moves.has_begun(step)
        seen.append(moves.target)
    plan = cap.Cubic(sparsity=0.9).over(10)
    assert seen == [plan(step) for step in range(10)]
    assert moves.reached == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize(
    "plan", [cap.OneShot(sparsity=0.5), cap.Stepwise(sparsity=0.5, levels=[0.2, 0.35, 0.5])], ids=["one", "levels"]
)
@pytest.mark.parametrize("stride", [2, 3])
def test_jump_between_two_counted_steps_is_made(plan, stride):
    moves = MaskMoves(cap.attach(tiny_classifier(), cap.Magnitude(scope="global")), plan)
    moves.begin(20)
    for step in range(0, 20, stride):
        moves.advance(step)
        assert moves.target == plan.over(20)(step)
    assert moves.reached == pytest.approx(0.5, abs=1e-3)


def test_pattern_and_schedule_of_two_sparsities_are_refused():
    with pytest.raises(ValueError, match=r"final_sparsity=0.5 of Magnitude and sparsity=0.9 of Cubic"):
        MaskMoves(cap.Magnitude(pattern="2:4"), cap.Cubic(sparsity=0.9))


def test_state_goes_on_where_it_was():
    def new() -> MaskMoves:
        moves = MaskMoves(cap.attach(tiny_classifier(), cap.Magnitude()), cap.OneShot(sparsity=0.5))
        moves.begin(10)
        return moves

    first, second = new(), new()
    first.advance(5)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert not second.is_due(6)  # the jump lies behind
