"""Differences between runs of one seed."""

from __future__ import annotations

import pytest

from cap.reports.differences import Difference


@pytest.mark.parametrize(
    ("by_seed", "judged"),
    [
        ({1: 0.02, 2: 0.03}, "+2.50 ± 0.50 points (2 seeds, 5.0 standard errors)"),
        ({1: -0.02, 2: -0.03}, "-2.50 ± 0.50 points (2 seeds, 5.0 standard errors)"),
        ({1: 0.02, 2: -0.03}, "-0.50 ± 2.50 points (2 seeds, 0.2 standard errors, no clear difference)"),
        ({1: 0.0, 2: 0.0}, "+0.00 ± 0.00 points (2 seeds, no clear difference)"),
        ({1: 0.02}, "+2.00 points (one seed, from which nothing can be concluded)"),
    ],
    ids=["more", "less", "unclear", "none", "one seed"],
)
def test_a_difference_is_judged_by_its_standard_error(by_seed, judged):
    assert Difference(by_seed).judged == judged
