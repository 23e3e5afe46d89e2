from __future__ import annotations

import pytest


@pytest.mark.parametrize(("bank", "dim"), [(3, 4), (5, 3)], ids=["rows", "columns"])
def test_a_shape_that_is_not_the_declared_one_is_refused_in_tests(bank, dim):
    import torch
    from jaxtyping import TypeCheckError

    from cap.objectives.contrastive import contrastive_loss

    mask = torch.zeros(2, 5, dtype=torch.bool)
    with pytest.raises(TypeCheckError, match=r"contrastive_loss"):
        contrastive_loss(
            torch.ones(2, 4),
            torch.ones(bank, dim),
            mask,
            is_self=mask,
            temperature=1.0,
            reduction="pairs",
        )
