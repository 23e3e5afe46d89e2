from __future__ import annotations

import pytest
import torch

from cap.data.sampler import LengthGroupedBatchSampler
from cap.errors import InputError

LENGTHS = torch.randint(3, 100, (1003,), generator=torch.Generator().manual_seed(0))


def sampler(*, batch_size: int = 8, seed: int = 1, shuffle: bool = True, **more: int) -> LengthGroupedBatchSampler:
    return LengthGroupedBatchSampler(LENGTHS, batch_size, seed, shuffle, **more)


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "sorted"])
@pytest.mark.parametrize("batch_size", [1, 8, 1003, 2000])
def test_every_row_comes_exactly_once(batch_size: int, shuffle: bool) -> None:
    batches = list(sampler(batch_size=batch_size, shuffle=shuffle))
    assert sorted(row for batch in batches for row in batch) == list(range(1003))


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "sorted"])
def test_its_length_is_the_number_of_its_batches(shuffle: bool) -> None:
    assert len(sampler(shuffle=shuffle)) == len(list(sampler(shuffle=shuffle))) == 126


def test_one_batch_at_most_is_not_full() -> None:
    sizes = sorted(len(batch) for batch in sampler())
    assert sizes == [3] + [8] * 125


def test_same_seed_and_epoch_give_the_same_order() -> None:
    assert list(sampler()) == list(sampler())


def test_epochs_differ() -> None:
    samples = sampler()
    first = list(samples)
    samples.set_epoch(1)
    assert list(samples) != first


def test_seeds_differ() -> None:
    assert list(sampler(seed=1)) != list(sampler(seed=2))


def test_sorted_order_starts_with_the_longest() -> None:
    rows = [row for batch in sampler(shuffle=False) for row in batch]
    assert LENGTHS[rows].tolist() == sorted(LENGTHS.tolist(), reverse=True)


def test_little_of_a_shuffled_batch_is_padding() -> None:
    padded = sum(len(batch) * int(LENGTHS[batch].max()) for batch in sampler())
    assert padded < 1.1 * int(LENGTHS.sum())


def test_lengths_do_not_rise_over_a_shuffled_epoch() -> None:
    means = torch.tensor([LENGTHS[batch].float().mean() for batch in sampler()])
    position = torch.arange(len(means)).float()
    assert abs(torch.corrcoef(torch.stack([means, position]))[0, 1]) < 0.3


def test_resumption_leaves_out_what_was_taken_and_only_once() -> None:
    whole = sampler()
    whole.set_epoch(2)
    expected = list(whole)
    resumed = sampler()
    resumed.resume(2, 5)
    resumed.set_epoch(2)
    assert list(resumed) == expected[5:]
    assert list(resumed) == expected


def test_another_epoch_forgets_a_resumption() -> None:
    resumed = sampler()
    resumed.resume(2, 5)
    resumed.set_epoch(3)
    assert len(list(resumed)) == 126


def test_processes_share_the_rows_with_equally_many_batches() -> None:
    shares = [list(sampler(num_replicas=4, rank=rank)) for rank in range(4)]
    assert [len(share) for share in shares] == [32] * 4
    assert {row for share in shares for batch in share for row in batch} == set(range(1003))


def test_fewer_batches_than_processes_still_give_everyone_one() -> None:
    shares = [list(sampler(batch_size=2000, num_replicas=3, rank=rank)) for rank in range(3)]
    assert [len(share) for share in shares] == [1] * 3


def test_no_rows_give_no_batches() -> None:
    assert list(LengthGroupedBatchSampler([], 8, 1, True)) == []


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"seed": -1}], ids=["batch_size", "seed"])
def test_impossible_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        sampler(**wrong)
