from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest

from cap.pruning.schedule import Cubic, OneShot, SchedulePlan, Stepwise
from cap.pruning.targets import CubicSchedule, StepSchedule

N_STEPS = [1, 2, 3, 11, 1001]
PLANS = {
    "cubic": Cubic(sparsity=0.97, warmup=0.1, flat_before=0.2, flat_after=0.3),
    "cubic_without_flat": Cubic(sparsity=0.97, warmup=0.0, flat_before=0.0, flat_after=0.0),
    "cubic_nearly_flat": Cubic(sparsity=0.97, warmup=0.0, flat_before=0.99, flat_after=0.0),
    "cubic_jump": Cubic(sparsity=0.97, warmup=0.0, flat_before=0.5, flat_after=0.49),
    "cubic_from_0.7": Cubic(sparsity=0.97, warmup=0.1, flat_before=0.2, flat_after=0.3, initial_sparsity=0.7),
    "prunings": Cubic(sparsity=0.97, warmup=0.1, flat_before=0.1, flat_after=0.4, n_prunings=6),
    "prunings_from_0.3": Cubic(
        sparsity=0.97, warmup=0.1, flat_before=0.1, flat_after=0.4, initial_sparsity=0.3, n_prunings=7
    ),
    "stepwise": Stepwise(sparsity=0.97, warmup=0.1),
    "stepwise_late": Stepwise(sparsity=0.97, warmup=0.1, flat_before=0.9),
    "oneshot": OneShot(sparsity=0.97, warmup=0.1, flat_before=0.2),
    "oneshot_late": OneShot(sparsity=0.97, warmup=0.1, flat_before=0.999),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def targets(plan: SchedulePlan, n_steps: int) -> list[float]:
    schedule = plan.over(n_steps)
    return [schedule(step) for step in range(n_steps)]


def paper(step: int, *, initial: str, final: str, start: int, end: int) -> float:
    """Write out equation 1 of arXiv:1710.01878 with a step of 1, in exact fractions."""
    s_i, s_f, t_0, n = Fraction(initial), Fraction(final), start, end - start
    return float(s_f + (s_i - s_f) * (1 - Fraction(step - t_0, n)) ** 3)


# --- the cubic formula


@pytest.mark.parametrize("step", [20, 21, 35, 50, 69, 70])
@pytest.mark.parametrize(("initial", "final"), [("0", "0.97"), ("0.25", "0.5"), ("0.9", "0.9")])
def test_the_ramp_is_the_paper_s_formula(step: int, initial: str, final: str) -> None:
    schedule = CubicSchedule(initial_sparsity=float(initial), final_sparsity=float(final), ramp_start=20, ramp_end=70)
    assert schedule(step) == pytest.approx(paper(step, initial=initial, final=final, start=20, end=70), abs=1e-12)


def test_seven_eighths_are_reached_half_way() -> None:
    assert CubicSchedule(final_sparsity=0.8, ramp_start=10, ramp_end=30)(20) == pytest.approx(0.7)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (19, 0.0), (20, 0.25)])
def test_it_jumps_from_nothing_to_the_initial_sparsity_at_the_start(step: int, expected: float) -> None:
    schedule = CubicSchedule(initial_sparsity=0.25, final_sparsity=0.75, ramp_start=20, ramp_end=70)
    assert schedule(step) == expected


@pytest.mark.parametrize("step", [70, 71, 10**6])
def test_it_is_flat_at_exactly_the_final_sparsity_from_the_end(step: int) -> None:
    assert CubicSchedule(final_sparsity=0.97, ramp_start=20, ramp_end=70)(step) == 0.97


@pytest.mark.parametrize(("initial", "final"), [(0.0, 97.0), (0.0, 1.0), (-0.1, 0.5), (0.6, 0.5), (0.0, math.nan)])
def test_sparsities_out_of_range_are_refused(initial: float, final: float) -> None:
    with pytest.raises(ValueError, match=r"0 <= initial_sparsity <= final_sparsity < 1, got .*0\.97, not 97"):
        CubicSchedule(initial_sparsity=initial, final_sparsity=final, ramp_start=0, ramp_end=1)


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (-1, 5)])
def test_a_ramp_without_length_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"0 <= ramp_start < ramp_end, got {start} and {end}"):
        CubicSchedule(final_sparsity=0.5, ramp_start=start, ramp_end=end)


# --- what holds for every plan


@every_plan
@pytest.mark.parametrize("n_steps", N_STEPS)
def test_the_target_rises_from_0_or_more_to_the_sparsity_and_never_falls(plan: SchedulePlan, n_steps: int) -> None:
    reached = targets(plan, n_steps)
    assert all(a <= b for a, b in pairwise([0.0, *reached]))
    assert reached[-1] == 0.97


@every_plan
@pytest.mark.parametrize("n_steps", N_STEPS[1:])
def test_the_last_jump_reaches_the_target(plan: SchedulePlan, n_steps: int) -> None:
    assert plan.jumps(n_steps)[-1] == targets(plan, n_steps).index(0.97)


@pytest.mark.parametrize(
    "name", ["stepwise", "stepwise_late", "oneshot", "oneshot_late", "prunings", "prunings_from_0.3"]
)
@pytest.mark.parametrize("n_steps", N_STEPS)
def test_level_starts_are_where_the_target_jumps(name: str, n_steps: int) -> None:
    reached = [0.0, *targets(PLANS[name], n_steps)]
    jumps = [step for step, (before, after) in enumerate(pairwise(reached)) if after > before]
    assert sorted(set(PLANS[name].level_starts(n_steps))) == jumps


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 97.0, math.nan])
@pytest.mark.parametrize(
    "plan",
    [
        lambda sparsity: Cubic(sparsity=sparsity, warmup=0.1, flat_before=0.2, flat_after=0.3),
        lambda sparsity: Stepwise(sparsity=sparsity, warmup=0.1),
        lambda sparsity: OneShot(sparsity=sparsity, warmup=0.1, flat_before=0.2),
    ],
    ids=["cubic", "stepwise", "oneshot"],
)
def test_a_sparsity_out_of_range_is_refused(plan, sparsity: float) -> None:
    hint = r"; did you mean 0\.97\?" if sparsity == 97 else ""
    with pytest.raises(ValueError, match=rf"sparsity is the fraction .* lies in \[0, 1\), got {sparsity}{hint}$"):
        plan(sparsity)


@pytest.mark.parametrize("value", [-0.1, 1.0, 10.0, math.nan])
@pytest.mark.parametrize("name", ["warmup", "flat_before", "flat_after"])
def test_a_fraction_of_the_run_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    fractions = {"warmup": 0.1, "flat_before": 0.0, "flat_after": 0.0} | {name: value}
    with pytest.raises(ValueError, match=rf"schedule\.{name} is a fraction of the run .*got {value}"):
        Cubic(sparsity=0.5, **fractions)


@pytest.mark.parametrize("plan", [Stepwise, OneShot])
@pytest.mark.parametrize("name", ["warmup", "flat_before"])
def test_the_other_plans_refuse_a_fraction_out_of_range_too(plan, name: str) -> None:
    with pytest.raises(ValueError, match=rf"schedule\.{name} is a fraction of the run"):
        plan(**{"sparsity": 0.5, "warmup": 0.1, "flat_before": 0.2, name: 2.0})


def test_flat_phases_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must leave room .*got 0\.5 \+ 0\.5"):
        Cubic(sparsity=0.5, warmup=0.1, flat_before=0.5, flat_after=0.5)


@pytest.mark.parametrize("plan", [PLANS["cubic"], PLANS["oneshot"], PLANS["stepwise"]])
def test_the_trainer_sets_the_length_of_the_run(plan: SchedulePlan) -> None:
    assert plan.n_epochs is None


# --- cubic


def test_the_flat_phases_have_their_share_of_the_run() -> None:
    reached = targets(Cubic(sparsity=0.9, warmup=0.0, flat_before=0.2, flat_after=0.3), 1000)
    rises = [step for step, (before, after) in enumerate(pairwise(reached)) if after > before]
    assert (rises[0], rises[-1]) == (200, 699)  # first step above 0 is 201, first at the target 700


def test_a_long_run_has_the_shape_of_a_short_one() -> None:
    plan = PLANS["cubic"]
    assert targets(plan, 1000)[::10] == pytest.approx(targets(plan, 100))


@pytest.mark.parametrize(
    ("n_steps", "expected"),
    [(1, [0.8]), (2, [0.0, 0.8]), (3, [0.0, 0.7, 0.8])],
    ids=["1", "2", "3"],
)
def test_the_shortest_runs_without_flat_phases(n_steps: int, expected: list[float]) -> None:
    plan = Cubic(sparsity=0.8, warmup=0.0, flat_before=0.0, flat_after=0.0)
    assert targets(plan, n_steps) == pytest.approx(expected)


def test_a_gradual_plan_has_no_levels() -> None:
    assert PLANS["cubic"].level_starts(100) is None


# --- levels


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (0.9, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (0.97, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97]),
        (0.3, [0.1, 0.2, 0.3]),
        (0.05, [0.05]),
        (0.0, [0.0]),
    ],
)
def test_levels_rise_by_ten_points_up_to_the_sparsity(sparsity: float, expected: list[float]) -> None:
    assert list(Stepwise(sparsity=sparsity, warmup=0.1).resolved_levels) == expected


@pytest.mark.parametrize("levels", [[0.5, 0.8], (0.5, 0.8)], ids=["list", "tuple"])
def test_levels_can_be_chosen(levels: list[float] | tuple[float, ...]) -> None:
    assert targets(Stepwise(sparsity=0.8, warmup=0.1, levels=levels), 4) == [0.5, 0.5, 0.8, 0.8]


@pytest.mark.parametrize(
    "levels",
    [[0.5, 0.9], [0.5, 0.7], [], [0.8, 0.5, 0.8], [0.5, 0.5, 0.8], [-0.1, 0.8], [math.nan, 0.8], [0.5, 80.0]],
    ids=["above", "below", "none", "falling", "twice", "negative", "nan", "percent"],
)
def test_levels_that_do_not_rise_to_the_sparsity_are_refused(levels: list[float]) -> None:
    with pytest.raises(ValueError, match=r"must rise and end at sparsity=0\.8, got \[.*leave schedule\.levels out"):
        Stepwise(sparsity=0.8, warmup=0.1, levels=levels)


def test_all_levels_have_the_same_length() -> None:
    assert targets(Stepwise(sparsity=0.3, warmup=0.0), 9) == [0.1] * 3 + [0.2] * 3 + [0.3] * 3


def test_levels_share_what_the_flat_phase_leaves() -> None:
    plan = Stepwise(sparsity=0.4, warmup=0.0, flat_before=0.2, levels=[0.2, 0.4])
    assert targets(plan, 10) == [0.0] * 2 + [0.2] * 4 + [0.4] * 4


@pytest.mark.parametrize(
    ("n_levels", "epochs_per_level", "flat_before", "expected"),
    [(9, 2, 0.0, 18), (1, 1, 0.0, 1), (4, 1, 0.2, 5), (9, 1, 0.1, 10)],
)
def test_epochs_per_level_set_the_epochs_of_the_run(
    n_levels: int, epochs_per_level: int, flat_before: float, expected: int
) -> None:
    levels = [round(0.1 * level, 1) for level in range(1, n_levels + 1)]
    plan = Stepwise(
        sparsity=levels[-1],
        warmup=0.1,
        levels=levels,
        epochs_per_level=epochs_per_level,
        flat_before=flat_before,
    )
    assert plan.n_epochs == expected


def test_each_level_then_lasts_its_epochs() -> None:
    plan = Stepwise(sparsity=0.9, warmup=0.1, epochs_per_level=2)
    steps_per_epoch = 13
    starts = plan.level_starts(plan.n_epochs * steps_per_epoch)
    assert starts == [level * 2 * steps_per_epoch for level in range(9)]


def test_less_than_an_epoch_per_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule\.epochs_per_level must be at least 1, got 0"):
        Stepwise(sparsity=0.9, warmup=0.1, epochs_per_level=0)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (2, 0.0), (3, 0.5), (7, 0.5), (8, 0.9), (100, 0.9)])
def test_a_level_holds_from_its_own_step_on(step: int, expected: float) -> None:
    assert StepSchedule(levels=(0.5, 0.9), starts=(3, 8))(step) == expected


def test_the_higher_of_two_levels_with_one_start_wins() -> None:
    assert StepSchedule(levels=(0.5, 0.9), starts=(3, 3))(3) == 0.9


@pytest.mark.parametrize(
    ("levels", "starts", "message"),
    [
        ((0.5,), (0, 1), "every level needs one start"),
        ((), (), "needs one start"),
        ((0.1, 0.2), (5, 3), "must not fall"),
    ],
    ids=["numbers", "none", "falling"],
)
def test_starts_that_do_not_fit_the_levels_are_refused(
    levels: tuple[float, ...], starts: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        StepSchedule(levels=levels, starts=starts)


# --- one shot


def test_one_shot_jumps_once_after_its_flat_phase() -> None:
    assert targets(OneShot(sparsity=0.97, warmup=0.1, flat_before=0.2), 10) == [0.0] * 2 + [0.97] * 8


def test_one_shot_without_a_flat_phase_starts_at_the_target() -> None:
    assert targets(OneShot(sparsity=0.97, warmup=0.1, flat_before=0.0), 3) == [0.97] * 3


# --- prunings: a cubic rise in jumps


def prunings(**options) -> Cubic:
    return Cubic(**{"sparsity": 0.97, "warmup": 0.1, "flat_before": 0.2, "flat_after": 0.3, **options})


def rises(plan: SchedulePlan, n_steps: int) -> dict[int, float]:
    """Name the steps at which the target is above that of the step before, and the target there."""
    reached = [0.0, *targets(plan, n_steps)]
    return {step: after for step, (before, after) in enumerate(pairwise(reached)) if after > before}


@pytest.mark.parametrize("initial", [0.0, 0.3], ids=["from 0", "from 0.3"])
@pytest.mark.parametrize("n", [2, 3, 7, 50])
def test_there_are_exactly_as_many_jumps_as_were_asked_for(initial: float, n: int) -> None:
    assert len(rises(prunings(initial_sparsity=initial, n_prunings=n), 101)) == n


def test_levels_are_those_of_the_published_recipe() -> None:
    """Seven prunings every 4 of 30 epochs from 70 % on, as arXiv:2203.07259 lists them."""
    plan = prunings(initial_sparsity=0.7, n_prunings=7, flat_before=2 / 30, flat_after=4 / 30)
    assert plan.levels_reached == pytest.approx([0.7, 0.814, 0.89, 0.936, 0.96, 0.969, 0.97], abs=2e-3)
    assert list(rises(plan, 300)) == [20, 60, 100, 140, 180, 220, 260]


def test_the_first_jump_is_exactly_to_the_initial_sparsity() -> None:
    assert prunings(initial_sparsity=0.3, n_prunings=4).levels_reached[0] == 0.3


@pytest.mark.parametrize("initial", ["0", "0.3"])
def test_jumps_lie_on_the_papers_curve(initial: str) -> None:
    plan = prunings(initial_sparsity=float(initial), n_prunings=6)
    expected = {step: paper(step, initial=initial, final="0.97", start=200, end=700) for step in rises(plan, 1000)}
    # Where a distance is no whole number of steps, the curve is met at the distance, half a step away at most.
    assert rises(plan, 1000) == pytest.approx(expected, abs=3e-3)


def test_prunings_are_levels_to_whoever_asks() -> None:
    plan = prunings(n_prunings=2)
    assert plan.level_starts(10) == plan.jumps(10) == [5, 7]
    assert plan.over(10)(5) == plan.levels_reached[0]


def test_a_gradual_rise_jumps_to_its_start_and_reaches_its_target() -> None:
    assert prunings().jumps(10) == [7]
    assert prunings(initial_sparsity=0.3).jumps(10) == [2, 7]
    assert rises(prunings(initial_sparsity=0.3), 10)[2] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_sparsity": 0.97}, r"lies in \[0, 0\.97\), got 0\.97; lower it, or set schedule=oneshot"),
        ({"initial_sparsity": -0.1}, r"schedule\.initial_sparsity is where .* got -0\.1"),
        ({"initial_sparsity": math.nan}, r"schedule\.initial_sparsity is where .* got nan"),
        ({"n_prunings": 0}, r"schedule\.n_prunings must be at least 1, got 0; null prunes in every step"),
        ({"n_prunings": 1, "initial_sparsity": 0.3}, r"must be at least 2, the jump to .* and that to sparsity, got 1"),
        ({"rewind": "each"}, r"schedule\.rewind=each needs prunings with steps between .* set schedule\.n_prunings"),
        (
            {"rewind": "last", "flat_after": 0.0},
            r"schedule\.rewind=last leaves no steps: .*flat_after=0\.0 ends the run",
        ),
        ({"rewind_warmup": 1.0}, r"schedule\.rewind_warmup is a fraction of the run .*got 1\.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_prunings_and_rewinds_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prunings(**options)


@pytest.mark.parametrize(
    ("initial", "n_most"), [(0.0, 5), (0.3, 6)], ids=["a jump in each step", "and one where the rise begins"]
)
def test_more_prunings_than_steps_of_the_rise_are_a_problem(initial: float, n_most: int) -> None:
    fits, fits_not = (prunings(initial_sparsity=initial, n_prunings=n) for n in (n_most, n_most + 1))
    assert fits.problems(10) == []
    assert len(rises(fits, 10)) == n_most
    (problem,) = fits_not.problems(10)
    assert f"must be at most {n_most} in a run of 10 steps, of which the rise of sparsity has 5" in problem


@pytest.mark.parametrize(
    ("plan", "n_steps"),
    [
        (prunings(rewind="last", flat_after=0.01), 20),
        (OneShot(sparsity=0.9, warmup=0.1, flat_before=0.9, rewind="last"), 4),
    ],
    ids=["cubic", "oneshot"],
)
def test_a_rewind_that_leaves_no_steps_is_a_problem(plan: SchedulePlan, n_steps: int) -> None:
    (problem,) = plan.problems(n_steps)
    assert f"schedule.rewind=last leaves no steps: a run of {n_steps} steps ends at its target" in problem
    assert plan.problems(1000) == []


# --- where the learning rate starts anew


LEVELS = {"sparsity": 0.3, "warmup": 0.1}


@pytest.mark.parametrize(
    ("plan", "n_steps", "expected"),
    [
        (Stepwise(**LEVELS), 30, []),
        (Stepwise(**LEVELS, rewind="last"), 30, [20]),
        (Stepwise(**LEVELS, rewind="each"), 30, [10, 20]),
        (Stepwise(**LEVELS, rewind="each", flat_before=0.25), 40, [10, 20, 30]),
        (prunings(rewind="last"), 10, [7]),
        (prunings(rewind="last", initial_sparsity=0.3), 10, [7]),
        (prunings(rewind="last", n_prunings=2), 10, [7]),
        (prunings(rewind="each", n_prunings=2), 10, [5, 7]),
        (OneShot(**LEVELS, flat_before=0.2, rewind="last"), 10, [2]),
        (OneShot(**LEVELS, flat_before=0.0, rewind="each"), 10, []),
    ],
    ids=lambda value: f"{type(value).__name__} {value.rewind}" if isinstance(value, SchedulePlan) else "",
)
def test_a_rewind_is_where_the_sparsity_jumps_but_for_the_very_start(
    plan: SchedulePlan, n_steps: int, expected: list[int]
) -> None:
    assert plan.rewinds(n_steps) == expected


def test_the_optimizer_starts_anew_with_the_learning_rate_if_asked_to() -> None:
    assert Stepwise(**LEVELS, rewind="each").restarts(30) == []
    assert Stepwise(**LEVELS, rewind="each", restart_optimizer=True).restarts(30) == [10, 20]


def test_a_dense_run_rewinds_where_a_pruned_one_does() -> None:
    assert prunings(sparsity=0.0, rewind="each", n_prunings=3).rewinds(100) == prunings(
        rewind="each", n_prunings=3
    ).rewinds(100)
