"""``python -m benchmarks.make_data DIR``: writes ``DIR/sst2_8k``, the rows of the bake-off that are a part of SST-2.

They are 8,000 of SST-2's 67,349 training rows in an order of their own (``sst2_8k.txt``) and all 872 validation rows.
What is written is compared with the fingerprint that the committed records hold. SST-2 itself comes from the Hub or its
cache, or from a folder with ``train.*`` and ``validation.*`` in the Hub's order: ``--sst2 FOLDER``.
"""

from __future__ import annotations

import argparse
import sys
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
    target = folder / NAME
    if target.exists():
        raise InputError(
            f"{target} must not be there yet, since nothing is overwritten; remove it or name another folder"
        )
    chosen = [int(number) for number in numbers.read_text(encoding="utf-8").split()]
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
        found = _read(temporary).fingerprint
        if found != fingerprint:
            raise InputError(
                f"the rows must have the fingerprint {fingerprint} of the committed records, got {found}; take SST-2 "
                "as the Hub has it, in that order"
            )
    return target


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
        print(write(arguments.folder, sst2=arguments.sst2))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
