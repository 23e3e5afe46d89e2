"""A loader of batches that a checkpoint continues."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader

from cap.data.sampler import LengthGroupedBatchSampler


class ResumableLoader(DataLoader[dict[str, Tensor]]):
    """A loader that Lightning saves in a checkpoint and that continues in the middle of an epoch.

    A batch counts as used when the next one is asked for: a checkpoint that is written when a batch has been fetched,
    but nothing has been done with it, begins with that batch.
    """

    _n_used: int | None = None  # None until the first batch of a pass is asked for

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        self._n_used = None
        return self._batches()

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        # A generator starts at the first batch: Lightning makes the iterator before it sets the sampler's epoch.
        n_used = self._n_used = self._length_sampler.n_skipped
        for batch in super().__iter__():
            yield batch
            self._n_used = n_used = n_used + 1

    @property
    def _length_sampler(self) -> LengthGroupedBatchSampler:
        assert isinstance(self.batch_sampler, LengthGroupedBatchSampler)
        return self.batch_sampler

    def state_dict(self) -> dict[str, int]:
        """Say how many batches of which epoch were used."""
        sampler = self._length_sampler
        return {"epoch": sampler.epoch, "n_batches": sampler.n_skipped if self._n_used is None else self._n_used}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue behind these batches."""
        self._n_used = None
        self._length_sampler.resume(state_dict["epoch"], state_dict["n_batches"])


__all__ = ["ResumableLoader"]
