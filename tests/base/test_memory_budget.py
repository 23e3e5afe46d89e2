from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from cap.base.memory_budget import MemoryBudget, as_tensor

N_BYTES = 96  # of every array below but the small one
GIB = 1024**3


def _array(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, (8, 3), dtype=np.int32)


def _saved(folder: Path, name: str, array: np.ndarray) -> Path:
    np.save(folder / f"{name}.npy", array)
    return folder / f"{name}.npy"


def _is_mapped(array: np.ndarray) -> bool:
    return isinstance(array.base, np.memmap)


def _counts(budget: MemoryBudget) -> tuple[int, int]:
    return budget.bytes_in_memory, budget.bytes_mapped


@pytest.mark.parametrize(
    ("budget_bytes", "expected"),
    [(0, (0, N_BYTES)), (N_BYTES - 1, (0, N_BYTES)), (N_BYTES, (N_BYTES, 0)), (N_BYTES + 1, (N_BYTES, 0))],
    ids=["nothing", "one-byte-short", "exactly-enough", "one-byte-more"],
)
def test_an_array_is_read_if_it_fits_to_the_byte(tmp_path: Path, budget_bytes: int, expected: tuple[int, int]) -> None:
    budget = MemoryBudget(budget_bytes / GIB)
    array = budget.open_array(_saved(tmp_path, "a", _array(0)))
    assert (_counts(budget), _is_mapped(array)) == (expected, expected[0] == 0)


def test_an_array_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    import psutil

    n_bytes = psutil.virtual_memory().total + psutil.swap_memory().total + GIB
    path = tmp_path / "large.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(1,))
    with path.open("r+b") as file:  # a hole, which takes no room on the disk
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n_bytes,)})
        file.truncate(file.tell() + n_bytes)
    tensor = as_tensor(MemoryBudget(0.0).open_array(path))
    assert (len(tensor), int(tensor[-1])) == (n_bytes, 0)


def test_arrays_are_taken_in_the_order_they_come(tmp_path: Path) -> None:
    budget = MemoryBudget((2 * N_BYTES + 10) / GIB)
    arrays = [budget.open_array(_saved(tmp_path, str(number), _array(number))) for number in range(4)]
    assert [_is_mapped(array) for array in arrays] == [False, False, True, True]


def test_a_smaller_array_is_read_after_one_that_did_not_fit(tmp_path: Path) -> None:
    budget = MemoryBudget((N_BYTES - 1) / GIB)
    budget.open_array(_saved(tmp_path, "large", _array(0)))
    small = budget.open_array(_saved(tmp_path, "small", _array(1)[:2]))
    assert (_is_mapped(small), _counts(budget)) == (False, (small.nbytes, N_BYTES))


@pytest.mark.parametrize("gb", [1.0, 0.0], ids=["read", "mapped"])
def test_the_values_are_those_of_the_file(tmp_path: Path, gb: float) -> None:
    array = MemoryBudget(gb).open_array(_saved(tmp_path, "a", _array(5)))
    np.testing.assert_array_equal(array, _array(5), strict=True)


def test_writing_to_an_array_does_not_reach_the_file(tmp_path: Path) -> None:
    path = _saved(tmp_path, "a", _array(5))
    before = path.read_bytes()
    MemoryBudget(1.0).open_array(path)[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        MemoryBudget(0.0).open_array(path)[:] = 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("gb", [1.0, 0.0], ids=["read", "mapped"])
def test_an_array_outlives_a_file_that_is_replaced(tmp_path: Path, gb: float) -> None:
    path = _saved(tmp_path, "a", _array(5))
    array = MemoryBudget(gb).open_array(path)
    _saved(tmp_path, "other", _array(6)).replace(path)
    np.testing.assert_array_equal(array, _array(5))


@pytest.mark.parametrize("gb", [1.0, 0.0], ids=["read", "mapped"])
def test_torch_takes_an_array_without_a_copy(tmp_path: Path, gb: float) -> None:
    array = MemoryBudget(gb).open_array(_saved(tmp_path, "a", _array(5)))
    assert as_tensor(array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize("holder", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_what_is_held_counts_even_if_it_does_not_fit(holder) -> None:
    budget = MemoryBudget(0.0)
    budget.hold(holder(_array(0)), holder(_array(1)))
    assert _counts(budget) == (2 * N_BYTES, 0)


def test_what_is_held_leaves_less_for_arrays(tmp_path: Path) -> None:
    budget = MemoryBudget(N_BYTES / GIB)
    budget.hold(np.zeros(1, dtype=np.int8))
    assert _is_mapped(budget.open_array(_saved(tmp_path, "a", _array(0))))


@pytest.mark.parametrize(("n_processes", "is_mapped"), [(1, False), (2, False), (3, True)], ids=["one", "two", "three"])
def test_processes_of_one_machine_share_the_budget(tmp_path: Path, n_processes: int, is_mapped: bool) -> None:
    budget = MemoryBudget(2 * N_BYTES / GIB, n_processes=n_processes)
    assert _is_mapped(budget.open_array(_saved(tmp_path, "a", _array(0)))) is is_mapped


def test_an_endless_budget_maps_nothing(tmp_path: Path) -> None:
    assert not _is_mapped(MemoryBudget(float("inf")).open_array(_saved(tmp_path, "a", _array(0))))


def test_says_once_that_the_budget_is_used_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    budget = MemoryBudget(N_BYTES / GIB)
    for number in range(4):
        budget.open_array(_saved(tmp_path, str(number), _array(number)))
    assert [record.message for record in caplog.records if "memory.budget_gb" in record.message] == [
        "memory.budget_gb: 0.00 of this process's 0.00 GiB are used; what does not fit is memory-mapped"
    ]


def test_says_nothing_where_everything_was_to_be_mapped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    MemoryBudget(0.0).open_array(_saved(tmp_path, "a", _array(0)))
    assert not caplog.records


@pytest.mark.parametrize("gb", [1.0, 0.0], ids=["read", "mapped"])
def test_an_array_of_python_objects_is_refused_and_not_counted(tmp_path: Path, gb: float) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([{"a": 1}] * 8, dtype=object), allow_pickle=True)
    budget = MemoryBudget(gb)
    with pytest.raises(ValueError, match=r"[Pp]ython objects|allow_pickle"):
        budget.open_array(path)
    assert _counts(budget) == (0, 0)


@pytest.mark.parametrize("gb", [-0.5, float("nan")], ids=["negative", "nan"])
def test_an_impossible_budget_is_refused(gb: float) -> None:
    with pytest.raises(ValueError, match=rf"memory\.budget_gb .* must be >= 0, got {gb}"):
        MemoryBudget(gb)


def test_a_budget_of_no_process_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one process, got n_processes=0"):
        MemoryBudget(1.0, n_processes=0)


@pytest.mark.parametrize("gb", [1.0, 0.0], ids=["read", "mapped"])
def test_a_released_array_leaves_the_counts_as_they_were(tmp_path: Path, gb: float) -> None:
    budget = MemoryBudget(gb)
    budget.open_array(_saved(tmp_path, "kept", _array(0)))
    before = _counts(budget)
    budget.release(budget.open_array(_saved(tmp_path, "released", _array(1))))
    assert _counts(budget) == before


def test_what_is_held_can_be_released() -> None:
    budget, rows = MemoryBudget(1.0), torch.zeros(3)
    budget.hold(rows)
    budget.release(rows)
    assert _counts(budget) == (0, 0)
