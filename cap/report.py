"""``python -m cap.report DIR...``: the table of many runs, its pictures, and a page to look through them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cap.base.errors import InputError
from cap.base.files import real_folder


def report(folders: Sequence[Path], *, output: Path, title: str) -> tuple[str, Path]:
    """Read the runs below folders and write a report on them, whole or not at all.

    Args:
        folders: Where the runs are.
        output: The folder to write; an earlier report there is replaced.
        title: The heading of the page and of ``table.md``.

    Returns:
        One sentence on what was found, and the page.

    Raises:
        InputError: If a folder holds no run, or ``output`` holds something that is no report.
    """
    from cap.reports import report_phases as phases  # draws: not before the command line is read

    phases.require_free(output)
    found = phases.read(folders)
    return found.sentence, phases.write(found, output, title=title)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m cap.report --help")


def main() -> None:
    """Read the command line, write the report, and say where it is; a known error is one line and exit code 2."""
    parser = _Parser(prog="python -m cap.report", description="Table, pictures and page over the runs below folders.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders that hold runs, at any depth")
    parser.add_argument("--output", type=Path, default=Path("report"), help="the folder to write (default: report)")
    parser.add_argument("--title", default="Runs", help="heading of the page")
    try:
        given = parser.parse_args()
        said, page = report(given.folders, output=real_folder(given.output), title=given.title)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from error
    sys.stdout.write(f"{said} {page}\n")


if __name__ == "__main__":
    main()
