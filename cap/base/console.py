"""Tables on the terminal, and in what a command's output is piped to."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table

_WIDTH = 160  # of a file or a pipe; rich would take 80, and break paths and titles


def print_table(table: Table) -> None:
    """Print a table to standard output, as wide as a terminal is or ``COLUMNS`` says."""
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if has_width else _WIDTH).print(table)


__all__ = ["print_table"]
