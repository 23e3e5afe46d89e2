from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from cap.base.memory_budget import MemoryBudget
from cap.objectives.memory import Memory, moved

N, DIM = 64, 8
ARRAY_BYTES = N * DIM * 2
GIB = 1024**3

has_memory_maps = pytest.mark.skipif(
    not hasattr(psutil.Process, "memory_maps"), reason="this system does not list its memory maps"
)


def _array(seed: int, n: int = N, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float16)


def _saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def _memory(n_examples: int = N, budget_gb: float = 1.0) -> Memory:
    return Memory(n_examples=n_examples, budget=MemoryBudget(budget_gb))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _is_mapped(path: Path) -> bool:
    return str(path) in [found.path for found in psutil.Process().memory_maps()]


# --- encodings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget_gb", [1.0, 0.0], ids=["in-memory", "mapped"])
@pytest.mark.parametrize(
    "ids", [[0, 1, 2], [63, 5, 40], [7, 7, 3, 7], [9], []], ids=["in-order", "any-order", "repeated", "one", "none"]
)
def test_gather_gives_the_rows_that_were_asked_for(tmp_path: Path, budget_gb: float, ids: list[int]) -> None:
    array = _array(1)
    memory = _memory(budget_gb=budget_gb)
    memory.add("pretrained", _saved(tmp_path / "a.npy", array))
    rows = memory.gather("pretrained", torch.tensor(ids, dtype=torch.int64))
    np.testing.assert_array_equal(rows.numpy(), array[np.array(ids, dtype=np.int64)][:, None])


def test_snapshots_stack_in_the_order_they_came(tmp_path: Path) -> None:
    arrays = [_array(seed) for seed in range(3)]
    memory = _memory()
    for k, array in enumerate(arrays):
        memory.add("snapshots", _saved(tmp_path / f"{k}.npy", array))
    rows = memory.gather("snapshots", torch.tensor([8, 2]))
    np.testing.assert_array_equal(rows.numpy(), np.stack([array[[8, 2]] for array in arrays], axis=1))


def test_sources_are_kept_apart(tmp_path: Path) -> None:
    memory = _memory()
    memory.add("pretrained", _saved(tmp_path / "p.npy", _array(1)))
    memory.add("finetuned", _saved(tmp_path / "f.npy", _array(2)))
    np.testing.assert_array_equal(memory.gather("finetuned", torch.tensor([4]))[0, 0].numpy(), _array(2)[4])


@pytest.mark.parametrize("n_snapshots", [0, 1, 9])
def test_counts_the_encodings_of_a_source(tmp_path: Path, n_snapshots: int) -> None:
    memory = _memory()
    for k in range(n_snapshots):
        memory.add("snapshots", _saved(tmp_path / f"{k}.npy", _array(k)))
    assert memory.n_encodings("snapshots") == n_snapshots


@pytest.mark.parametrize("budget_gb", [1.0, 0.0], ids=["in-memory", "mapped"])
def test_float16_stays_float16(tmp_path: Path, budget_gb: float) -> None:
    memory = _memory(budget_gb=budget_gb)
    memory.add("pretrained", _saved(tmp_path / "a.npy", _array(1)))
    assert memory.gather("pretrained", torch.tensor([0])).dtype == torch.float16


def test_encodings_are_gathered_as_float16_under_autocast(tmp_path: Path) -> None:
    memory = _memory()
    memory.add("pretrained", _saved(tmp_path / "a.npy", _array(1)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = memory.gather("pretrained", torch.tensor([5, 2]))
    assert (rows.dtype, rows[:, 0].tolist()) == (torch.float16, _array(1)[[5, 2]].tolist())


def test_an_example_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    memory = _memory()
    memory.add("pretrained", _saved(tmp_path / "a.npy", _array(1)))
    with pytest.raises(IndexError, match="out of range"):
        memory.gather("pretrained", torch.tensor([N]))


@pytest.mark.parametrize("budget_gb", [1.0, 0.0], ids=["in-memory", "mapped"])
def test_writing_to_gathered_rows_changes_no_bank(tmp_path: Path, budget_gb: float) -> None:
    memory = _memory(budget_gb=budget_gb)
    memory.add("pretrained", _saved(tmp_path / "a.npy", _array(1)))
    memory.gather("pretrained", torch.tensor([3])).zero_()
    np.testing.assert_array_equal(memory.gather("pretrained", torch.tensor([3]))[0, 0].numpy(), _array(1)[3])


def test_a_source_that_is_not_filled_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="finetuned"):
        _memory().gather("finetuned", torch.tensor([0]))


def test_ids_beyond_float16_find_their_own_row(tmp_path: Path) -> None:
    ids = np.arange(5000)
    array = np.stack([ids // 64, ids % 64], axis=1).astype(np.float16)  # both halves are exact in float16
    memory = _memory(n_examples=5000)
    memory.add("pretrained", _saved(tmp_path / "a.npy", array))
    asked = torch.tensor([2047, 2048, 2049, 4097, 4999])
    found = memory.gather("pretrained", asked)[:, 0].long()
    assert (found[:, 0] * 64 + found[:, 1]).tolist() == asked.tolist()


# --- budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget_bytes", "expected"),
    [(0, 0), (ARRAY_BYTES - 1, 0), (ARRAY_BYTES, ARRAY_BYTES), (3 * ARRAY_BYTES, 2 * ARRAY_BYTES)],
    ids=["none", "one-byte-short", "room-for-one", "room-for-three"],
)
def test_two_arrays_hold_what_the_budget_allows(tmp_path: Path, budget_bytes: int, expected: int) -> None:
    budget = MemoryBudget(budget_bytes / GIB)
    memory = Memory(n_examples=N, budget=budget)
    memory.add("pretrained", _saved(tmp_path / "p.npy", _array(1)))
    memory.add("finetuned", _saved(tmp_path / "f.npy", _array(2)))
    assert budget.bytes_in_memory == expected


def test_teacher_logits_count_against_the_budget(tmp_path: Path) -> None:
    budget = MemoryBudget(ARRAY_BYTES / GIB)
    memory = Memory(n_examples=N, budget=budget)
    memory.set_teacher_logits(_saved(tmp_path / "t.npy", _array(3, dim=2)))
    memory.add("pretrained", _saved(tmp_path / "p.npy", _array(1)))
    assert (budget.bytes_in_memory, budget.bytes_mapped) == (N * 2 * 2, ARRAY_BYTES)


def test_what_others_hold_leaves_less_for_the_banks(tmp_path: Path) -> None:
    budget = MemoryBudget(ARRAY_BYTES / GIB)
    budget.hold(np.zeros(1, dtype=np.int8))
    Memory(n_examples=N, budget=budget).add("pretrained", _saved(tmp_path / "p.npy", _array(1)))
    assert (budget.bytes_in_memory, budget.bytes_mapped) == (1, ARRAY_BYTES)


def test_an_array_that_is_refused_does_not_count(tmp_path: Path) -> None:
    budget = MemoryBudget(1.0)
    with pytest.raises(ValueError, match="training examples"):
        Memory(n_examples=N, budget=budget).add("pretrained", _saved(tmp_path / "bad.npy", _array(1, n=5)))
    assert (budget.bytes_in_memory, budget.bytes_mapped) == (0, 0)


def test_arrays_in_memory_and_on_disk_give_their_rows_side_by_side(tmp_path: Path) -> None:
    memory = _memory(budget_gb=ARRAY_BYTES / GIB)
    for k in range(3):
        memory.add("snapshots", _saved(tmp_path / f"{k}.npy", _array(k)))
    rows = memory.gather("snapshots", torch.tensor([11, 60]))
    np.testing.assert_array_equal(rows.numpy(), np.stack([_array(k)[[11, 60]] for k in range(3)], axis=1))


@has_memory_maps
@pytest.mark.parametrize(("budget_gb", "expected"), [(0.0, True), (1.0, False)], ids=["over", "within"])
def test_an_array_is_mapped_when_it_is_over_the_budget(tmp_path: Path, budget_gb: float, expected: bool) -> None:
    path = _saved(tmp_path / "a.npy", _array(1, n=4096))
    memory = _memory(n_examples=4096, budget_gb=budget_gb)
    memory.add("pretrained", path)
    assert _is_mapped(path) is expected


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [_array(1, n=N - 1), _array(1, n=N + 1), _array(1).astype(np.float32), _array(1)[:, 0], _array(1)[:, None]],
    ids=["row-missing", "row-too-many", "float32", "one-axis", "three-axes"],
)
def test_an_array_of_another_shape_or_type_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    path = _saved(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"float16 rows for all {N} training examples, got {array.dtype} of shape"):
        _memory().add("pretrained", path)


def test_teacher_logits_of_other_rows_are_refused(tmp_path: Path) -> None:
    path = _saved(tmp_path / "t.npy", _array(1, n=N - 1, dim=2))
    with pytest.raises(ValueError, match=f"all {N} training examples"):
        _memory().set_teacher_logits(path)


def test_a_refused_array_leaves_its_source_as_it_was(tmp_path: Path) -> None:
    memory = _memory()
    with pytest.raises(ValueError, match="training examples"):
        memory.add("snapshots", _saved(tmp_path / "bad.npy", _array(1, n=N - 1)))
    with pytest.raises(KeyError, match="snapshots"):
        memory.gather("snapshots", torch.tensor([0]))


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([{"a": 1}] * N, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"[Pp]ython objects|allow_pickle"):
        _memory().add("pretrained", path)


def test_a_memory_without_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one training example, got 0"):
        _memory(n_examples=0)


# --- teacher logits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget_gb", [1.0, 0.0], ids=["in-memory", "mapped"])
def test_teacher_logits_come_by_example(tmp_path: Path, budget_gb: float) -> None:
    logits = _array(5, dim=3)
    memory = _memory(budget_gb=budget_gb)
    memory.set_teacher_logits(_saved(tmp_path / "t.npy", logits))
    np.testing.assert_array_equal(memory.teacher_logits(torch.tensor([50, 2, 2])).numpy(), logits[[50, 2, 2]])


def test_missing_teacher_logits_are_a_key_error() -> None:
    with pytest.raises(KeyError, match="no teacher logits"):
        _memory().teacher_logits(torch.tensor([0]))


# --- logits of the newest snapshot -------------------------------------------------------------------------------


def test_only_the_newest_snapshots_logits_are_kept(tmp_path: Path) -> None:
    memory = _memory()
    for step in range(3):
        memory.set_snapshot_logits(_saved(tmp_path / f"{step}.npy", _array(step, dim=3)))
    expected = _array(2, dim=3)[[9, 0]]
    np.testing.assert_array_equal(memory.snapshot_logits(torch.tensor([9, 0])).numpy(), expected)


def test_teacher_and_snapshot_keep_their_own_logits(tmp_path: Path) -> None:
    memory = _memory()
    memory.set_teacher_logits(_saved(tmp_path / "t.npy", _array(5, dim=3)))
    memory.set_snapshot_logits(_saved(tmp_path / "s.npy", _array(6, dim=3)))
    np.testing.assert_array_equal(memory.teacher_logits(torch.tensor([4])).numpy(), _array(5, dim=3)[[4]])
    np.testing.assert_array_equal(memory.snapshot_logits(torch.tensor([4])).numpy(), _array(6, dim=3)[[4]])


def test_a_memory_knows_whether_a_snapshot_has_given_logits(tmp_path: Path) -> None:
    memory = _memory()
    assert not memory.has_snapshot_logits
    with pytest.raises(KeyError, match="no snapshot's logits"):
        memory.snapshot_logits(torch.tensor([0]))
    memory.set_snapshot_logits(_saved(tmp_path / "s.npy", _array(6, dim=3)))
    assert memory.has_snapshot_logits


def test_snapshots_of_spans_come_by_example_and_count_once(tmp_path: Path) -> None:
    budget = MemoryBudget(1.0)
    memory = Memory(n_examples=N, budget=budget)
    lengths = _saved(tmp_path / "lengths.npy", LENGTHS)
    for seed in (8, 7):
        memory.set_snapshot_logits(_saved(tmp_path / f"{seed}.npy", _array(seed, n=N_TOKENS, dim=2)), lengths=lengths)
    assert memory.snapshot_logits(torch.tensor([5, 63])).tolist() == _slow_spans([5, 63])
    assert budget.bytes_in_memory == N_TOKENS * 2 * 2 + (N + 1) * 8


def test_new_logits_fit_where_the_old_ones_did(tmp_path: Path) -> None:
    budget = MemoryBudget(N * 3 * 2 / GIB)
    memory = Memory(n_examples=N, budget=budget)
    for step in range(3):
        memory.set_snapshot_logits(_saved(tmp_path / f"{step}.npy", _array(step, dim=3)))
    assert (budget.bytes_in_memory, budget.bytes_mapped) == (N * 3 * 2, 0)


def test_refused_logits_leave_those_of_the_snapshot_before(tmp_path: Path) -> None:
    memory = _memory()
    memory.set_snapshot_logits(_saved(tmp_path / "good.npy", _array(1, dim=3)))
    with pytest.raises(ValueError, match="training examples"):
        memory.set_snapshot_logits(_saved(tmp_path / "bad.npy", _array(2, n=N - 1, dim=3)))
    np.testing.assert_array_equal(memory.snapshot_logits(torch.tensor([3])).numpy(), _array(1, dim=3)[[3]])


# --- hidden states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget_gb", [1.0, 0.0], ids=["in-memory", "mapped"])
def test_hidden_states_come_by_example_with_all_layers(tmp_path: Path, budget_gb: float) -> None:
    states = _array(4, dim=6 * DIM).reshape(N, 6, DIM)
    memory = _memory(budget_gb=budget_gb)
    memory.set_hidden(_saved(tmp_path / "h.npy", states))
    np.testing.assert_array_equal(memory.hidden(torch.tensor([50, 2, 2])).numpy(), states[[50, 2, 2]])


def test_hidden_states_count_against_the_budget(tmp_path: Path) -> None:
    budget = MemoryBudget(1.0)
    Memory(n_examples=N, budget=budget).set_hidden(_saved(tmp_path / "h.npy", _array(4).reshape(N, 2, DIM // 2)))
    assert budget.bytes_in_memory == ARRAY_BYTES


@pytest.mark.parametrize("array", [_array(1), _array(1, n=N - 1)[:, None]], ids=["no layers", "row missing"])
def test_hidden_states_of_another_shape_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=f"float16 rows for all {N} training examples"):
        _memory().set_hidden(_saved(tmp_path / "h.npy", array))


def test_missing_hidden_states_are_a_key_error() -> None:
    with pytest.raises(KeyError, match="no hidden states"):
        _memory().hidden(torch.tensor([0]))


# --- teacher logits of spans -------------------------------------------------------------------------------------

LENGTHS = np.random.default_rng(6).integers(1, 12, N)
N_TOKENS = int(LENGTHS.sum())
budgets = pytest.mark.parametrize("budget_gb", [1.0, 0.0], ids=["in-memory", "mapped"])


def _spans(
    folder: Path,
    *,
    budget_gb: float = 1.0,
    budget: MemoryBudget | None = None,
    lengths: np.ndarray = LENGTHS,
    n_tokens: int = N_TOKENS,
) -> Memory:
    memory = Memory(n_examples=N, budget=budget or MemoryBudget(budget_gb))
    logits = _saved(folder / "logits.npy", _array(7, n=n_tokens, dim=2))
    memory.set_teacher_logits(logits, lengths=_saved(folder / "lengths.npy", lengths))
    return memory


def _slow_spans(ids: list[int]) -> list[list[list[float]]]:
    """Walk to each example's tokens one at a time, and pad with zeros."""
    flat = _array(7, n=N_TOKENS, dim=2).tolist()
    rows, position = [], 0
    for length in LENGTHS:
        rows.append(flat[position : position + length])
        position += length
    longest = max(len(rows[i]) for i in ids)
    return [rows[i] + [[0.0, 0.0]] * (longest - len(rows[i])) for i in ids]


@budgets
@pytest.mark.parametrize(
    "ids", [[0, 1, 2], [63, 5, 40], [7, 7, 3, 7], [9], [0], [63]], ids=lambda ids: "-".join(map(str, ids))
)
def test_spans_agree_with_a_walk_over_the_tokens(tmp_path: Path, budget_gb: float, ids: list[int]) -> None:
    assert _spans(tmp_path, budget_gb=budget_gb).teacher_logits(torch.tensor(ids)).tolist() == _slow_spans(ids)


def test_spans_on_disk_have_the_bits_of_those_in_memory(tmp_path: Path) -> None:
    ids = torch.randperm(N, generator=_generator(4))
    held, mapped = _spans(tmp_path, budget_gb=1.0), _spans(tmp_path, budget_gb=0.0)
    assert torch.equal(held.teacher_logits(ids).view(torch.int16), mapped.teacher_logits(ids).view(torch.int16))


OFFSET_BYTES, SPAN_BYTES = 8 * (N + 1), N_TOKENS * 2 * 2


@pytest.mark.parametrize(
    ("budget_bytes", "in_memory", "mapped"),
    [
        (OFFSET_BYTES + SPAN_BYTES, OFFSET_BYTES + SPAN_BYTES, 0),
        (OFFSET_BYTES + SPAN_BYTES - 1, OFFSET_BYTES, SPAN_BYTES),
        (0, OFFSET_BYTES, SPAN_BYTES),
    ],
    ids=["room-for-both", "one-byte-short", "none"],
)
def test_where_the_tokens_of_spans_begin_is_held_and_counted_first(
    tmp_path: Path, budget_bytes: int, in_memory: int, mapped: int
) -> None:
    budget = MemoryBudget(budget_bytes / GIB)
    _spans(tmp_path, budget=budget)
    assert (budget.bytes_in_memory, budget.bytes_mapped) == (in_memory, mapped)


def test_spans_of_no_example_are_empty(tmp_path: Path) -> None:
    assert _spans(tmp_path).teacher_logits(torch.empty(0, dtype=torch.int64)).shape == (0, 0, 2)


def test_writing_to_spans_changes_no_stored_logits(tmp_path: Path) -> None:
    memory = _spans(tmp_path)
    memory.teacher_logits(torch.tensor([3])).zero_()
    assert memory.teacher_logits(torch.tensor([3])).tolist() == _slow_spans([3])


def test_spans_stay_float16_under_autocast(tmp_path: Path) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = _spans(tmp_path).teacher_logits(torch.tensor([5, 2]))
    assert (rows.dtype, rows.tolist()) == (torch.float16, _slow_spans([5, 2]))


def test_tokens_beyond_int16_find_their_own_window(tmp_path: Path) -> None:
    lengths = np.full(5000, 10)
    tokens = np.arange(50_000)
    memory = _memory(n_examples=5000)
    flat = np.stack([tokens // 256, tokens % 256], axis=1).astype(np.float16)  # both halves are exact in float16
    memory.set_teacher_logits(_saved(tmp_path / "logits.npy", flat), lengths=_saved(tmp_path / "lengths.npy", lengths))
    found = memory.teacher_logits(torch.tensor([4999, 3333])).long()
    expected = [list(range(49_990, 50_000)), list(range(33_330, 33_340))]
    assert (found[..., 0] * 256 + found[..., 1]).tolist() == expected


@pytest.mark.parametrize(
    "lengths",
    [LENGTHS[1:], LENGTHS.astype(np.int32), LENGTHS * (np.arange(N) != 5), LENGTHS[:, None]],
    ids=["window-missing", "int32", "no-token", "two-axes"],
)
def test_lengths_of_other_windows_are_refused(tmp_path: Path, lengths: np.ndarray) -> None:
    with pytest.raises(ValueError, match=rf"tokens \(int64, >= 1\) each of the {N} training examples has, got"):
        _spans(tmp_path, lengths=lengths)


@pytest.mark.parametrize("change", [-1, 1], ids=["token-missing", "token-too-many"])
def test_logits_that_are_not_those_of_the_lengths_are_refused(tmp_path: Path, change: int) -> None:
    with pytest.raises(ValueError, match=f"all {N_TOKENS} tokens of the training examples, got"):
        _spans(tmp_path, n_tokens=N_TOKENS + change)


# --- extras ------------------------------------------------------------------------------------------------------


def test_extras_are_drawn_without_replacement() -> None:
    extras = _memory(n_examples=50).draw_extras(40, exclude=torch.tensor([1, 2]), generator=_generator())
    assert len(set(extras.tolist())) == 40


@pytest.mark.parametrize("seed", range(5))
def test_no_extra_is_in_the_batch(seed: int) -> None:
    batch = torch.tensor([0, 3, 6, 9, 12])
    extras = _memory(n_examples=15).draw_extras(8, exclude=batch, generator=_generator(seed))
    assert not set(extras.tolist()) & set(batch.tolist())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch", [[4, 5], [4, 5, 4, 5], []], ids=["distinct-rows", "repeated-rows", "empty-batch"])
def test_as_many_extras_come_as_were_asked_for(batch: list[int], seed: int) -> None:
    exclude = torch.tensor(batch, dtype=torch.int64)
    extras = _memory(n_examples=12).draw_extras(9, exclude=exclude, generator=_generator(seed))
    assert len(extras) == 9


def test_all_that_are_left_come_when_there_are_fewer() -> None:
    extras = _memory(n_examples=10).draw_extras(100, exclude=torch.tensor([0, 3, 4, 9]), generator=_generator())
    assert sorted(extras.tolist()) == [1, 2, 5, 6, 7, 8]


def test_no_extra_is_left_when_the_batch_is_everything() -> None:
    extras = _memory(n_examples=4).draw_extras(3, exclude=torch.tensor([3, 1, 0, 2]), generator=_generator())
    assert (len(extras), extras.dtype) == (0, torch.int64)


def test_no_extra_comes_when_none_is_wanted() -> None:
    extras = _memory().draw_extras(0, exclude=torch.tensor([3]), generator=_generator())
    assert (len(extras), extras.dtype) == (0, torch.int64)


def test_one_seed_gives_one_draw() -> None:
    memory, batch = _memory(), torch.tensor([1, 2])
    first = memory.draw_extras(20, exclude=batch, generator=_generator(5))
    assert memory.draw_extras(20, exclude=batch, generator=_generator(5)).tolist() == first.tolist()


def test_the_next_draw_of_a_generator_is_another() -> None:
    memory, batch, generator = _memory(), torch.tensor([1, 2]), _generator(5)
    first = memory.draw_extras(20, exclude=batch, generator=generator)
    assert memory.draw_extras(20, exclude=batch, generator=generator).tolist() != first.tolist()


def test_the_global_seed_is_left_alone() -> None:
    before = torch.get_rng_state()
    _memory().draw_extras(20, exclude=torch.tensor([1]), generator=_generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("place", [slice(0, 3), slice(0, 1), slice(2, 3)], ids=["all", "first", "last"])
@pytest.mark.parametrize("n_examples", [20, 200], ids=["permuted", "drawn"])
def test_every_example_outside_the_batch_is_drawn_equally_often(n_examples: int, place: slice) -> None:
    # Each place on its own, too: a bank of several encodings takes the first extras only.
    memory, batch, generator = _memory(n_examples=n_examples), torch.tensor([4, 17]), _generator(11)
    draws = torch.cat([memory.draw_extras(3, exclude=batch, generator=generator)[place] for _ in range(6000)])
    counts = torch.bincount(draws, minlength=n_examples).double()
    counts = counts[[i for i in range(n_examples) if i not in (4, 17)]]
    n_free = n_examples - 3  # degrees of freedom
    expected = len(draws) / (n_examples - 2)
    # A fair draw lies 3.3 standard deviations above once in a thousand; draws without replacement vary less.
    assert ((counts - expected) ** 2 / expected).sum().item() < n_free + 3.3 * (2 * n_free) ** 0.5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_examples", [16 * 45, 16 * 45 + 1, 5000], ids=["permuted", "just drawn", "drawn"])
def test_extras_of_large_sets_are_distinct_and_none_is_in_the_batch(n_examples: int, seed: int) -> None:
    batch = torch.tensor([0, 7, 7, 99, n_examples - 1])
    extras = _memory(n_examples=n_examples).draw_extras(40, exclude=batch, generator=_generator(seed)).tolist()
    assert len(set(extras)) == len(extras) == 40
    assert not set(extras) & set(batch.tolist())
    assert set(extras) <= set(range(n_examples))


def test_draws_go_on_from_where_a_generator_was() -> None:
    memory, batch, generator = _memory(n_examples=5000), torch.tensor([1, 2]), _generator(5)
    memory.draw_extras(40, exclude=batch, generator=generator)
    state = generator.get_state()
    expected = memory.draw_extras(40, exclude=batch, generator=generator)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert torch.equal(memory.draw_extras(40, exclude=batch, generator=resumed), expected)


def test_a_draw_touches_no_more_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a permutation of all examples in every step")

    monkeypatch.setattr(torch, "randperm", refuse)
    extras = _memory(n_examples=10**9).draw_extras(40, exclude=torch.tensor([1, 2]), generator=_generator())
    assert len(extras) == 40


# --- to the device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "expected"), [("cuda", ["pinned", "cuda"]), ("cpu", ["cpu"])])
def test_only_cuda_copies_from_pinned_memory(monkeypatch: pytest.MonkeyPatch, device: str, expected: list[str]) -> None:
    done: list[str] = []
    rows = torch.zeros(3)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: done.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, to, *, non_blocking: done.append(to.type) or self)
    moved(rows, torch.device(device))
    assert done == expected


@pytest.mark.gpu
def test_rows_for_cuda_are_gathered_into_pinned_memory(tmp_path: Path) -> None:
    memory = _memory()
    memory.add("pretrained", _saved(tmp_path / "a.npy", _array(1)))
    rows = memory.gather("pretrained", torch.tensor([5, 2]), pin=True)
    assert rows.is_pinned()
    assert torch.equal(moved(rows, torch.device("cuda")).cpu(), rows)


def test_extras_of_a_large_set_are_exact_int64() -> None:
    memory = _memory(n_examples=5000)
    extras = memory.draw_extras(5000, exclude=torch.tensor([2049]), generator=_generator())
    assert (extras.dtype, sorted(extras.tolist())) == (torch.int64, [i for i in range(5000) if i != 2049])


# --- the library's face: no budget, tensors as well as files


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensor_is_kept_as_a_float16_copy(dtype) -> None:
    from cap.objectives.memory import Memory

    encodings = torch.randn(N, DIM).to(dtype)
    memory = Memory(N)
    memory.add("pretrained", encodings)
    expected = encodings.to(torch.float16, copy=True)
    encodings.zero_()
    gathered = memory.gather("pretrained", torch.tensor([2, 0]))
    assert torch.equal(gathered, expected[[2, 0]][:, None])


def test_tensor_counts_against_the_budget() -> None:
    from cap.base.memory_budget import MemoryBudget
    from cap.objectives.memory import Memory

    budget = MemoryBudget(1.0)
    Memory(N, budget=budget).add("snapshots", torch.randn(N, DIM))
    assert budget.bytes_in_memory == 2 * N * DIM


def test_path_may_be_text(tmp_path) -> None:
    from cap.objectives.memory import Memory

    memory = Memory(N)
    memory.add("finetuned", str(_saved(tmp_path / "a.npy", _array(1))))
    assert memory.n_encodings("finetuned") == 1


def test_tensor_of_other_rows_is_refused() -> None:
    from cap.objectives.memory import Memory

    memory = Memory(N)
    with pytest.raises(ValueError, match=rf"one row for each of the {N} training examples"):
        memory.add("pretrained", torch.randn(N + 1, DIM))
    assert memory.n_encodings("pretrained") == 0


def test_unknown_source_is_refused() -> None:
    from cap.objectives.memory import Memory

    add = getattr(Memory.add, "__wrapped__", Memory.add)  # past the annotation, which says so, too
    while hasattr(add, "__wrapped__"):
        add = add.__wrapped__
    with pytest.raises(ValueError, match="sources pretrained, finetuned, snapshots, got 'student'"):
        add(Memory(N), "student", torch.randn(N, DIM))
