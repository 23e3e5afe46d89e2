from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from cap.base.memory_budget import MemoryBudget
from cap.data.datamodule import CapDataModule
from cap.data.sources import load_rows
from cap.data.tasks import get_task
from cap.data.tokens import write_arrays
from tests.data.questions import question_columns

N_TRAIN, N_VALIDATION = 43, 10
GIB = 1024**3
# Lengths, starts and labels of both splits, int64.
HELD = 3 * 8 * (N_TRAIN + N_VALIDATION)
MakeData = Callable[..., CapDataModule]


@pytest.fixture
def make_data(tmp_path: Path, pair_columns, write_split, tokenizer) -> MakeData:
    write_split(tmp_path / "data", "train", pair_columns(N_TRAIN))
    write_split(tmp_path / "data", "validation", pair_columns(N_VALIDATION))
    return _maker("qqp", tmp_path, tokenizer, max_length=16)


@pytest.fixture
def make_questions(tmp_path: Path, write_split, tokenizer) -> MakeData:
    for split in ("train", "validation"):
        write_split(tmp_path / "data", split, question_columns())
    return _maker("squad", tmp_path, tokenizer, max_length=80, stride=20)


def _maker(name: str, folder: Path, tokenizer, **settings) -> MakeData:
    task = get_task(name)
    rows = load_rows(task, data_dir=folder / "data", max_train_rows=None, max_eval_rows=None)
    common = {"tokenizer_key": "k", "batch_size": 4, "seed": 3, "cache_dir": folder / "cache"}

    def make(budget: MemoryBudget | None) -> CapDataModule:
        data = CapDataModule(rows=rows, task=task, tokenizer=tokenizer, budget=budget, **common, **settings)
        data.setup()
        return data

    return make


def _column_bytes(folder: Path) -> dict[str, int]:
    """Bytes of one column of tokens, by split; both columns are equally long."""
    sizes = [np.load(path).nbytes for path in sorted((folder / "cache").rglob("input_ids.npy"))]
    return {"train": max(sizes), "validation": min(sizes)}


def _counts(budget: MemoryBudget) -> tuple[int, int]:
    return budget.bytes_in_memory, budget.bytes_mapped


@pytest.fixture
def column(make_data: MakeData, tmp_path: Path) -> dict[str, int]:
    make_data(None)
    return _column_bytes(tmp_path)


def test_tokens_and_what_is_needed_whole_are_counted(make_data: MakeData, column: dict[str, int]) -> None:
    budget = MemoryBudget(1.0)
    make_data(budget)
    assert _counts(budget) == (HELD + 2 * column["train"] + 2 * column["validation"], 0)


def test_no_budget_for_tokens_maps_them_all(make_data: MakeData, column: dict[str, int]) -> None:
    budget = MemoryBudget(0.0)
    make_data(budget)
    assert _counts(budget) == (HELD, 2 * column["train"] + 2 * column["validation"])


def test_training_tokens_come_first(make_data: MakeData, column: dict[str, int]) -> None:
    held_before = 3 * 8 * N_TRAIN
    budget = MemoryBudget((held_before + 2 * column["train"]) / GIB)
    make_data(budget)
    assert _counts(budget) == (HELD + 2 * column["train"], 2 * column["validation"])


@pytest.mark.parametrize("gb", [1.0, 0.0], ids=["read", "mapped"])
def test_batches_do_not_depend_on_the_budget(make_data: MakeData, gb: float) -> None:
    found = list(make_data(MemoryBudget(gb)).train_dataloader())
    expected = list(make_data(None).train_dataloader())
    assert [{name: value.tolist() for name, value in batch.items()} for batch in found] == [
        {name: value.tolist() for name, value in batch.items()} for batch in expected
    ]


@pytest.mark.parametrize("gb", [1.0, 0.0], ids=["read", "mapped"])
def test_writing_to_a_batch_changes_no_tokens(make_data: MakeData, gb: float) -> None:
    data = make_data(MemoryBudget(gb))
    for batch in data.encoding_dataloader():
        batch["input_ids"].zero_()
    assert all(batch["input_ids"].any() for batch in data.encoding_dataloader())


def test_tokens_lie_in_memory_as_they_lie_on_disk(make_data: MakeData, column: dict[str, int]) -> None:
    # int64 would be twice as much, which no longer fits.
    budget = MemoryBudget((HELD + 2 * column["train"] + 2 * column["validation"]) / GIB)
    make_data(budget)
    assert budget.bytes_mapped == 0


def test_answers_and_groups_of_windows_are_counted(make_questions: MakeData) -> None:
    budget = MemoryBudget(0.0)
    data = make_questions(budget)
    n_windows = data.n_train
    # Lengths, starts, groups, and two positions of the answer; the splits are alike.
    assert (budget.bytes_in_memory, torch.is_tensor(data.train_groups)) == (2 * 5 * 8 * n_windows, True)


PART_BYTES = 100 * 2 * 1000 * 4


def _numbers(columns: dict[str, list], first_row: int) -> dict[str, np.ndarray]:
    """Make 1,000 pairs of each row, 0.8 MB of 100 rows."""
    rows = np.asarray(columns["row"], dtype=np.int32)
    return {"rows": rows.astype(np.int64), "pairs": np.repeat(rows, 2000).reshape(-1, 2)}


@pytest.fixture
def parts_of_100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cap.data.tokens._ROWS_PER_CALL", 100)


@pytest.mark.usefixtures("parts_of_100")
@pytest.mark.parametrize("n_rows", [99, 100, 1234], ids=["less-than-a-part", "one-part", "many-parts"])
@pytest.mark.parametrize("name", ["rows", "pairs"])
def test_parts_make_the_file_that_the_whole_would_make(tmp_path: Path, n_rows: int, name: str) -> None:
    rows = datasets.Dataset.from_dict({"row": list(range(n_rows))})
    written = write_arrays(rows, tmp_path / "tokens", _numbers)
    whole = _numbers({"row": list(range(n_rows))}, 0)[name]
    expected = io.BytesIO()
    np.save(expected, whole)
    assert (tmp_path / "tokens" / f"{name}.npy").read_bytes() == expected.getvalue()
    np.testing.assert_array_equal(written[name], whole, strict=True)


@pytest.mark.usefixtures("parts_of_100")
def test_tokenising_holds_one_part_at_a_time(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"row": list(range(2000))})
    tracemalloc.start()
    write_arrays(rows, tmp_path / "tokens", _numbers)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert PART_BYTES < peak < 4 * PART_BYTES
