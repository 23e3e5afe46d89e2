"""Rows that are chosen by their numbers, against rows that a test has chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cap.base.errors import InputError


@pytest.fixture
def sst2(tmp_path) -> Path:
    folder = tmp_path / "sst2"
    folder.mkdir()
    for split, n_rows in (("train", 6), ("validation", 2)):
        lines = [json.dumps({"sentence": f"{split} text {row}", "label": row % 2, "idx": row}) for row in range(n_rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "numbers.txt").write_text("4 1\n5\n")
    return folder


def fingerprint_of(folder: Path) -> str:
    from cap.data.sources import load_rows
    from cap.data.tasks import get_task

    return load_rows(get_task("sst2"), data_dir=folder, max_train_rows=None, max_eval_rows=None).fingerprint


def test_rows_are_those_of_the_numbers_in_that_order(sst2, tmp_path):
    import pyarrow.parquet as pq

    from benchmarks.make_data import write

    expected = tmp_path / "expected"
    expected.mkdir()
    lines = [json.dumps({"sentence": f"train text {row}", "label": row % 2}) for row in (4, 1, 5)]
    (expected / "train.jsonl").write_text("\n".join(lines))
    (expected / "validation.jsonl").write_text((sst2 / "validation.jsonl").read_text())
    numbers = tmp_path / "numbers.txt"
    folder = write(tmp_path / "all", sst2=sst2, numbers=numbers, fingerprint=fingerprint_of(expected))
    assert folder == tmp_path / "all" / "sst2_8k"
    assert pq.read_table(folder / "train.parquet").to_pylist() == [json.loads(line) for line in lines]
    with pytest.raises(InputError, match="sst2_8k must not be there yet"):
        write(tmp_path / "all", sst2=sst2, numbers=numbers)


def test_other_rows_than_those_of_the_records_leave_nothing(sst2, tmp_path):
    from benchmarks.make_data import write

    with pytest.raises(InputError, match=r"must have the fingerprint 87ffb43c3a3bba99 of the committed records, got "):
        write(tmp_path / "all", sst2=sst2, numbers=tmp_path / "numbers.txt")
    assert list((tmp_path / "all").iterdir()) == []


def test_a_part_of_sst2_is_refused(sst2, tmp_path):
    from benchmarks.make_data import write

    with pytest.raises(InputError, match=r"more than 67,\d{3} training rows, got 6; give all of it"):
        write(tmp_path / "all", sst2=sst2)


def test_unseen_texts_share_no_run_of_words_with_known_ones_nor_with_each_other():
    from benchmarks.make_data import unseen

    texts = [
        "a b c d",  # of a known one
        "e f g",
        "x e f g h ",  # longer than what lies in it
        "e f",  # short
        "x y a b",  # of two words in a row a third is new
        "m n o",
        "m n o",  # there before
    ]
    assert unseen(texts, ["z a b c d"], shortest=3, run=3) == [2, 4, 5]
    assert unseen(texts, ["z a b c d"], shortest=4, run=3) == [2, 4]
    assert unseen(texts, ["z a b c d"], shortest=3, run=2) == [2, 5]


def test_other_rows_are_unseen_texts_of_training(sst2, tmp_path):
    import pyarrow.parquet as pq

    from benchmarks.make_data import write_others

    def words(first: int) -> str:
        return " ".join(str(number) for number in range(first, first + 8))

    new = [{"sentence": words(100), "label": 1}, {"sentence": words(200), "label": 0}]
    lines = [json.dumps(row | {"idx": 9}) for row in [*new, {"sentence": words(300), "label": 1}]]
    numbers = tmp_path / "numbers.txt"
    with pytest.raises(InputError, match="must have texts that were not learned from, got none in 6; give all of it"):
        write_others(tmp_path / "all", sst2=sst2, numbers=numbers)
    with (sst2 / "train.jsonl").open("a") as file:
        file.write("\n" + "\n".join(lines))
    numbers.write_text("4 8")  # the last one is learned from
    with pytest.raises(InputError, match="must have the fingerprint a6e846201de62bb7 of the committed records"):
        write_others(tmp_path / "all", sst2=sst2, numbers=numbers)
    assert list((tmp_path / "all").iterdir()) == []
    expected = tmp_path / "expected"
    expected.mkdir()
    (expected / "validation.jsonl").write_text("\n".join(map(json.dumps, new)))
    found = scored_fingerprint(expected)
    folder = write_others(tmp_path / "all", sst2=sst2, numbers=numbers, fingerprint=found)
    assert pq.read_table(folder / "validation.parquet").to_pylist() == new
    with pytest.raises(InputError, match="sst2_others must not be there yet"):
        write_others(tmp_path / "all", sst2=sst2, numbers=numbers)


def scored_fingerprint(folder: Path) -> str:
    from cap.data.sources import load_rows
    from cap.data.tasks import get_task

    rows = load_rows(get_task("sst2"), data_dir=folder, max_train_rows=None, max_eval_rows=None, needs_training=False)
    return rows.fingerprint


def test_the_numbers_are_8000_different_ones_and_the_fingerprint_that_of_the_records():
    from benchmarks.make_data import FINGERPRINT, NUMBERS

    numbers = [int(number) for number in NUMBERS.read_text().split()]
    assert (len(numbers), len(set(numbers)), min(numbers) >= 0, max(numbers) < 67_349) == (8000, 8000, True, True)
    records = (Path(NUMBERS).parent / "records" / "bake_off").glob("sst2_8k_*_0.97_none_seed*.json")
    assert {json.loads(file.read_text())["data"]["fingerprint"] for file in records} == {FINGERPRINT}
