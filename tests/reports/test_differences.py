"""Differences between runs of one seed."""

from __future__ import annotations

import pytest

from cap.reports.differences import Difference


@pytest.mark.parametrize(
    ("by_seed", "judged"),
    [
        (
            {1: 0.02, 2: 0.03},
            "+2.50 ± 0.50 points (2 seeds, 5.0 standard errors, not clear below 12.7)",
        ),
        ({1: 0.020, 2: 0.022}, "+2.10 ± 0.10 points (2 seeds, 21.0 standard errors)"),
        ({1: -0.02, 2: -0.03, 3: -0.025}, "-2.50 ± 0.29 points (3 seeds, 8.7 standard errors)"),
        (
            {1: -0.02, 2: -0.04, 3: -0.03},
            "-3.00 ± 0.58 points (3 seeds, 5.2 standard errors)",
        ),
        (
            {1: 0.02, 2: 0.04, 3: 0.01},
            "+2.33 ± 0.88 points (3 seeds, 2.6 standard errors, not clear below 4.3)",
        ),
        ({1: 0.0, 2: 0.0}, "+0.00 ± 0.00 points (2 seeds, no difference)"),
        ({1: 0.8 - 0.7, 2: 0.7 - 0.6}, "+10.00 ± 0.00 points (2 seeds, no error known)"),  # apart by rounding
        ({1: 0.02}, "+2.00 points (one seed, from which nothing can be concluded)"),
        # One digit would say 4.3 of both.
        (
            {1: 0.0230719, 2: 0.0230719, 3: 0.01},
            "+1.87 ± 0.44 points (3 seeds, 4.29 standard errors, not clear below 4.30)",
        ),
    ],
    ids=["two seeds", "more", "less", "three seeds", "unclear", "none", "equal", "one seed", "nearly"],
)
def test_a_difference_is_judged_by_its_standard_error(by_seed, judged):
    assert Difference(by_seed).judged == judged


def test_the_highest_row_is_compared_with_every_other_of_its_place(tmp_path) -> None:
    from cap.reports.collect import collect
    from cap.reports.differences import comparisons
    from cap.reports.tables import group_runs
    from tests.reports.made_records import made_record, write_run

    scores = {"movement": (0.80, 0.83, 0.82), "magnitude": (0.79, 0.80, 0.80), "random": (0.95,)}
    records = [
        made_record(pruning=pruning, seed=seed, score=score, terms=())
        for pruning, own in scores.items()
        for seed, score in enumerate(own, start=1)
    ]
    for number, record in enumerate([*records, made_record(pruning="movement", seed=1, sparsity=0.5)]):
        write_run(tmp_path / str(number), record)
    first, second = comparisons(group_runs(collect([tmp_path]).runs))
    # Random has the highest score, and one seed: no row of three is put behind it.
    assert [one.highest.first.pruning for one in (first, second)] == ["movement", "movement"]
    assert [one.other.first.pruning for one in (first, second)] == ["random", "magnitude"]
    assert first.difference.by_seed == {1: pytest.approx(-0.15)}
    assert second.difference.by_seed == {1: pytest.approx(0.01), 2: pytest.approx(0.03), 3: pytest.approx(0.02)}
    assert second.difference.standard_error == pytest.approx(0.01 / 3**0.5)


def test_rows_of_other_data_are_not_compared(tmp_path) -> None:
    from cap.reports.collect import collect
    from cap.reports.differences import comparison_rows
    from cap.reports.tables import group_runs
    from tests.reports.made_records import made_record, write_run

    for number, kind in enumerate(["movement", "magnitude"]):
        record = made_record(pruning=kind, seed=1)
        record["data"] = record.get("data", {}) | {"fingerprint": kind}
        write_run(tmp_path / str(number), record)
    assert comparison_rows(group_runs(collect([tmp_path]).runs)) == []
