"""``python -m benchmarks.make_data DIR``: writes ``DIR/sst2_8k`` and ``DIR/sst2_others``, parts of SST-2.

The first are the rows of the bake-off: 8,000 of SST-2's 67,349 training rows in an order of their own (``sst2_8k.txt``)
and all 872 validation rows. The second are 3,475 other training rows that share no five words in a row with those, nor
with each other, to score what was trained on the first. What is written is compared with fingerprints. SST-2 itself
comes from the Hub or its cache, or from a folder with ``train.*`` and ``validation.*`` in the Hub's order:
``--sst2 FOLDER``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from datasets import Dataset

from cap.base.errors import InputError
from cap.base.files import atomic_folder
from cap.data.sources import Rows, load_rows
from cap.data.tasks import get_task

NAME = "sst2_8k"
NUMBERS = Path(__file__).with_name(f"{NAME}.txt")
FINGERPRINT = "87ffb43c3a3bba99"
"""Of these rows, as ``data.fingerprint`` in the records of the bake-off."""


OTHERS = "sst2_others"
FINGERPRINT_OF_OTHERS = "a6e846201de62bb7"
"""Of the 3,475 rows, see ``write_others``."""
_SHORTEST = 8
_RUN = 5
"""Words in a row that tell where a phrase was taken from: one validation row of 18 shares as many by chance."""


def write(folder: Path, *, sst2: Path | None = None, numbers: Path = NUMBERS, fingerprint: str = FINGERPRINT) -> Path:
    """Write the rows as parquet files.

    Args:
        folder: Gets a folder ``sst2_8k``.
        sst2: A folder with all of SST-2; None takes the Hub.
        numbers: A file of the training rows' numbers in SST-2, in the order that is wanted.
        fingerprint: What the rows must have.

    Returns:
        The new folder.

    Raises:
        InputError: If it exists, if SST-2 is not there, or if its rows are others.
    """
    target = _new(folder / NAME)
    chosen = _numbers(numbers)
    source = _read(sst2)
    train = source.splits["train"]
    if train.num_rows <= max(chosen):
        raise InputError(
            f"SST-2 must have more than {max(chosen):,} training rows, got {train.num_rows:,}; give all of it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as temporary:
        for split, rows in (("train", train.select(chosen)), ("validation", source.splits["validation"])):
            cast(Dataset, rows).select_columns(["sentence", "label"]).to_parquet(temporary / f"{split}.parquet")
        _require(_read(temporary).fingerprint, fingerprint)
    return target


def write_others(
    folder: Path,
    *,
    sst2: Path | None = None,
    numbers: Path = NUMBERS,
    fingerprint: str = FINGERPRINT_OF_OTHERS,
) -> Path:
    """Write other training rows, as validation rows: more of them tell two models apart that differ in few answers.

    SST-2's training rows are sentences and phrases of them, so that of rows that are merely others a third lie inside
    one of the 8,000, and as many hold one: ``unseen`` leaves them out.

    Args:
        folder: Gets a folder ``sst2_others``.
        sst2: As in ``write``.
        numbers: Those of the rows that are learned from.
        fingerprint: What the rows must have.

    Returns:
        The new folder.

    Raises:
        InputError: As ``write``.
    """
    target = _new(folder / OTHERS)
    source = _read(sst2)
    texts = source.splits["train"]["sentence"]
    chosen = unseen(texts, [*(texts[number] for number in _numbers(numbers)), *source.splits["validation"]["sentence"]])
    if not chosen:
        raise InputError(
            f"SST-2 must have texts that were not learned from, got none in {len(texts):,}; give all of it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as temporary:
        rows = cast(Dataset, source.splits["train"].select(chosen))
        rows.select_columns(["sentence", "label"]).to_parquet(temporary / "validation.parquet")
        found = load_rows(
            get_task("sst2"), data_dir=temporary, max_train_rows=None, max_eval_rows=None, needs_training=False
        )
        _require(found.fingerprint, fingerprint)
    return target


def unseen(texts: Sequence[str], known: Iterable[str], *, shortest: int = _SHORTEST, run: int = _RUN) -> list[int]:
    """Choose texts that share no run of words with a known one, nor with each other.

    Longer texts come first, so that of a sentence and its phrases the sentence is chosen. What is chosen has nothing in
    common, and counts as so many rows as there are.

    Args:
        texts: Of words with spaces between them.
        known: Texts that were learned or chosen from.
        shortest: Words that a text has at least.
        run: So many words in a row must not be shared.

    Returns:
        The chosen texts' numbers, rising.
    """
    words = [tuple(text.split()) for text in texts]
    taken = {found for text in known for found in _runs(tuple(text.split()), run)}
    chosen = []
    for number in sorted(range(len(texts)), key=lambda number: (-len(words[number]), number)):
        runs = _runs(words[number], run)
        if len(words[number]) >= shortest and taken.isdisjoint(runs):
            taken |= runs
            chosen.append(number)
    return sorted(chosen)


def _runs(words: tuple[str, ...], length: int) -> set[tuple[str, ...]]:
    return {words[start : start + length] for start in range(len(words) - length + 1)}


def _new(target: Path) -> Path:
    if target.exists():
        raise InputError(
            f"{target} must not be there yet, since nothing is overwritten; remove it or name another folder"
        )
    return target


def _numbers(file: Path) -> list[int]:
    return [int(number) for number in file.read_text(encoding="utf-8").split()]


def _require(found: str, fingerprint: str) -> None:
    if found != fingerprint:
        raise InputError(
            f"the rows must have the fingerprint {fingerprint} of the committed records, got {found}; take SST-2 "
            "as the Hub has it, in that order"
        )


def _read(data_dir: Path | None) -> Rows:
    return load_rows(get_task("sst2"), data_dir=data_dir, max_train_rows=None, max_eval_rows=None)


def main() -> None:
    """Read the command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_data", description=f"{summary} {rest}")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--sst2", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        if not (arguments.folder / NAME).exists() or (arguments.folder / OTHERS).exists():
            print(write(arguments.folder, sst2=arguments.sst2))
        print(write_others(arguments.folder, sst2=arguments.sst2))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
