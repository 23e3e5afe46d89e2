from __future__ import annotations

import pytest
import torch

from cap.base.errors import InputError
from cap.data.sampler import LengthGroupedBatchSampler, representative_rows

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


# Two classes that go with length, as QQP's do.
CLASSES = (LENGTHS + torch.randint(0, 120, (1003,), generator=torch.Generator().manual_seed(1)) > 110).long()


def by_class(n_processes: int = 1, rank: int = 0) -> LengthGroupedBatchSampler:
    size = 8 // n_processes
    return LengthGroupedBatchSampler(LENGTHS, size, 1, True, num_replicas=n_processes, rank=rank, classes=CLASSES)


def test_every_batch_has_the_classes_in_their_proportions() -> None:
    counts = torch.stack([CLASSES[batch].float().mean() for batch in by_class() if len(batch) == 8])
    share = CLASSES.float().mean()
    # A binomial draw has 1, and batches of one length have 2.5 here.
    assert ((counts - share).square().mean() / (share * (1 - share) / 8)) < 0.5


def test_rows_of_classes_come_exactly_once() -> None:
    assert sorted(row for batch in by_class() for row in batch) == list(range(1003))


def test_batches_of_all_classes_are_of_similar_length_still() -> None:
    padded = sum(len(batch) * int(LENGTHS[batch].max()) for batch in by_class())
    random = torch.randperm(1003, generator=torch.Generator().manual_seed(0)).split(8)
    assert padded < 0.75 * sum(len(batch) * int(LENGTHS[batch].max()) for batch in random)


def test_processes_share_the_batches_of_classes_and_resume_together() -> None:
    whole = list(by_class())
    shares = [by_class(2, rank) for rank in range(2)]
    for share in shares:
        share.resume(0, 7)
    steps = [[row for block in blocks for row in block] for blocks in zip(*shares, strict=True)]
    assert steps == whole[7:]


def test_only_which_rows_share_a_class_matters_not_its_number() -> None:
    renamed = LengthGroupedBatchSampler(LENGTHS, 8, 1, True, classes=5 - 7 * (1 - CLASSES))
    assert list(renamed) == list(by_class())


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


def shared(n_processes: int, **more) -> list[LengthGroupedBatchSampler]:
    return [sampler(num_replicas=n_processes, rank=rank, **more) for rank in range(n_processes)]


@pytest.mark.parametrize("n_processes", [1, 2, 3, 4])
def test_processes_take_the_steps_of_one_with_as_many_rows_a_batch(n_processes: int) -> None:
    whole = sampler(batch_size=12)
    shares = shared(n_processes, batch_size=12 // n_processes)
    whole.set_epoch(2)
    for share in shares:
        share.set_epoch(2)
    steps = [[row for block in blocks for row in block] for blocks in zip(*shares, strict=True)]
    assert steps == list(whole)


def test_full_batches_are_shared_in_blocks_of_equal_size() -> None:
    sizes = [sorted(len(block) for block in share) for share in shared(2, batch_size=4)]
    assert [share[1:] for share in sizes] == [[4] * 125] * 2


@pytest.mark.parametrize(
    ("n_processes", "batch_size", "expected"),
    [(2, 4, [2, 1]), (3, 8, [7, 6, 6])],
    ids=["3 left of 8", "19 left of 24"],
)
def test_batch_that_is_not_full_is_shared_as_evenly_as_possible(
    n_processes: int, batch_size: int, expected: list[int]
) -> None:
    steps = list(zip(*shared(n_processes, batch_size=batch_size), strict=True))
    smallest = min(steps, key=lambda blocks: sum(map(len, blocks)))
    assert [len(block) for block in smallest] == expected


def test_batch_of_fewer_rows_than_processes_repeats_rows() -> None:
    # 1003 = 100 * 10 + 3
    steps = list(zip(*shared(10, batch_size=1), strict=True))
    smallest = min(steps, key=lambda blocks: len({row for block in blocks for row in block}))
    rows = [row for block in smallest for row in block]
    assert rows == (rows[:3] * 4)[:10]
    assert len({row for step in steps for block in step for row in block}) == 1003


@pytest.mark.parametrize("n_processes", [2, 3])
def test_processes_resume_together(n_processes: int) -> None:
    expected = [list(share) for share in shared(n_processes)]
    resumed = shared(n_processes)
    for share in resumed:
        share.resume(0, 7)
    assert [list(share) for share in resumed] == [share[7:] for share in expected]


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "sorted"])
@pytest.mark.parametrize("batch_size", [1, 8, 1003, 2000])
@pytest.mark.parametrize("n_processes", [2, 3, 5])
def test_length_of_a_share_is_the_number_of_its_batches(n_processes: int, batch_size: int, shuffle: bool) -> None:
    shares = shared(n_processes, batch_size=batch_size, shuffle=shuffle)
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]


@pytest.mark.parametrize("batch_size", [8, 300, 2000])
@pytest.mark.parametrize("n_processes", [2, 3, 5])
def test_sorted_batches_of_all_processes_are_those_of_one(n_processes: int, batch_size: int) -> None:
    whole = list(sampler(batch_size=batch_size, shuffle=False))
    shares = [list(share) for share in shared(n_processes, batch_size=batch_size, shuffle=False)]
    assert shares == [whole[rank::n_processes] for rank in range(n_processes)]


def test_a_process_without_sorted_batches_gets_none() -> None:
    assert [len(share) for share in shared(3, batch_size=2000, shuffle=False)] == [1, 0, 0]


def test_no_rows_give_no_batches() -> None:
    assert list(LengthGroupedBatchSampler([], 8, 1, True)) == []


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"seed": -1}], ids=["batch_size", "seed"])
def test_impossible_numbers_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        sampler(**wrong)


QUESTIONS = torch.arange(40).repeat_interleave(torch.arange(40) % 3 + 1)  # one to three windows each


@pytest.mark.parametrize("n_chosen", [1, 10, 40, 78])
def test_questions_are_drawn_whole(n_chosen: int) -> None:
    rows = representative_rows(len(QUESTIONS), n_chosen, QUESTIONS)
    chosen = set(QUESTIONS[rows].tolist())
    assert rows.tolist() == [row for row, question in enumerate(QUESTIONS.tolist()) if question in chosen]
    assert n_chosen - 3 < len(rows) <= max(n_chosen, 3)


def test_all_questions_come_where_all_are_wanted() -> None:
    assert representative_rows(len(QUESTIONS), len(QUESTIONS), QUESTIONS).tolist() == list(range(len(QUESTIONS)))


def test_rows_are_drawn_without_regard_to_their_order() -> None:
    rows = representative_rows(1000, 100, None)
    assert (len(set(rows.tolist())), rows.tolist()) == (100, sorted(rows.tolist()))
    assert 400 < rows.float().mean() < 600
