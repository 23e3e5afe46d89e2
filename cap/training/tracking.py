"""What loggers that are not ours say when they cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cap.base.errors import InputError, first_line


@contextmanager
def errors_of_wandb() -> Iterator[None]:
    """Turn what W&B says of a missing login or server into what to do.

    Raises:
        InputError: In place of W&B's own errors.
    """
    try:
        yield
    except Exception as error:
        # W&B is not imported for this: it takes a second, and most runs have no part of it.
        if not type(error).__module__.startswith("wandb"):
            raise
        raise InputError(
            f"logger=wandb must reach W&B, but: {first_line(error)}; run `wandb login`, set WANDB_MODE=offline in the "
            f"environment and upload later with `wandb sync`, or set logger=csv"
        ) from error


__all__ = ["errors_of_wandb"]
