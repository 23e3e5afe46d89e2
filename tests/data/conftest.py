from __future__ import annotations

from pathlib import Path

import pytest

WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "ran",
    "fast",
    "slow",
    "red",
    "blue",
    "green",
    "big",
    "small",
    "house",
]


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import BertTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizerFast(vocab={word: number for number, word in enumerate([*specials, *WORDS])})


@pytest.fixture
def pair_columns():
    """Make pairs of sentences of 1 to 20 words each, as QQP's columns."""

    def columns(n_rows: int) -> dict[str, list]:
        def sentence(row: int) -> str:
            return " ".join(WORDS[(row + place) % len(WORDS)] for place in range(1 + row * 7 % 20))

        return {
            "question1": [sentence(row) for row in range(n_rows)],
            "question2": [sentence(3 * row + 1) for row in range(n_rows)],
            "label": [row * row % 3 % 2 for row in range(n_rows)],
        }

    return columns


@pytest.fixture
def write_split():
    """Write one split's columns into a folder, in the format that a suffix names."""
    import pandas as pd

    writers = {
        "parquet": lambda frame, file: frame.to_parquet(file),
        "jsonl": lambda frame, file: frame.to_json(file, orient="records", lines=True),
        "json": lambda frame, file: frame.to_json(file, orient="records", lines=True),
        "csv": lambda frame, file: frame.to_csv(file, index=False),
        "tsv": lambda frame, file: frame.to_csv(file, index=False, sep="\t"),
    }

    def write(folder: Path, split: str, columns: dict[str, list], suffix: str = "parquet") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{split}.{suffix}"
        writers[suffix](pd.DataFrame(columns), file)
        return file

    return write
