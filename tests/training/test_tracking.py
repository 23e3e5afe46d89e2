from __future__ import annotations

import pytest


def test_a_missing_login_says_what_to_do():
    from wandb.errors import UsageError

    from cap.base.errors import InputError
    from cap.training.tracking import errors_of_wandb

    with pytest.raises(InputError) as caught, errors_of_wandb():
        raise UsageError("No API key configured. Use `wandb login` to log in.\nand more")
    said = str(caught.value)
    assert said.startswith("logger=wandb must reach W&B, but: No API key configured. Use `wandb login` to log in.; run")
    assert "WANDB_MODE=offline" in said
    assert len(said.splitlines()) == 1


def test_other_errors_stay_what_they_are():
    from cap.training.tracking import errors_of_wandb

    with pytest.raises(ValueError, match="of ours"), errors_of_wandb():
        raise ValueError("of ours")
