from __future__ import annotations

import pytest


@pytest.mark.parametrize(("given", "n"), [("12", 12), ("0", 0), ("0.25", 8), ("0.001", 1)])
def test_extra_examples_are_a_number_or_a_fraction_of_the_training_rows(compose_config, given, n):
    from cap.config import check
    from cap.train_parts import _contrast

    checked = check(compose_config(f"contrast.extra_examples={given}"))
    contrast = _contrast(checked, student=None, teacher=None, n_examples=32)  # neither is asked without anchor_dropout
    assert contrast is not None
    assert contrast.extra_examples == n
