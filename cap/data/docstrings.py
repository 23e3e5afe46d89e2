"""The offline default data: does this description belong to that function of the standard library?"""

from __future__ import annotations

import ast
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cap.base.errors import RunError

_SEED = 20_211
_VALIDATION_FRACTION = 0.1
_FEWEST = 500
# Tests and demonstrations describe themselves, the codecs' tables are long and say little, and the rest is about to
# leave the standard library or does not belong to it.
_SKIPPED_FOLDERS = {
    "__pycache__",
    "dist-packages",
    "distutils",
    "encodings",
    "ensurepip",
    "idle_test",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\]'\"`][.!?])\s+(?=[A-Z(\"'`])")
SPLITS = ("train", "validation")
"""Those that ``docstring_rows`` has."""
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def docstring_source() -> str:
    """Name the source for a record: which interpreter's standard library was read."""
    return f"docstrings of Python {platform.python_version()}"


@cache
def docstring_rows() -> dict[str, dict[str, list[Any]]]:
    """Pair names of the standard library with descriptions, half of them rightly.

    The library's sources are parsed, never imported, so that no module runs. Every name comes once with its own
    description and once with another's, and every description once rightly and once wrongly: neither tells the
    answer alone. About half of the wrong descriptions come from the same module. No name and no description
    of the training rows is among the validation rows.

    Returns:
        ``train`` and ``validation``, each with the columns ``name``, ``description`` and ``label``
        (1 = belongs), the same for every call on one interpreter.

    Raises:
        RunError: If this interpreter comes without the sources of its standard library.
    """
    described = sorted(_described(Path(sysconfig.get_paths()["stdlib"])))
    if len(described) < _FEWEST:
        raise RunError(
            f"task=docstrings reads the standard library's sources and needs {_FEWEST} docstrings, found "
            f"{len(described)}; run an interpreter that comes with its sources, or give task= and data_dir="
        )
    generator = np.random.default_rng(_SEED)
    order = generator.permutation(len(described))
    n_validation = round(len(described) * _VALIDATION_FRACTION)
    parts = zip(SPLITS, (order[n_validation:], order[:n_validation]), strict=True)
    return {split: _pairs([described[i] for i in part], generator) for split, part in parts}


def _pairs(described: list[tuple[str, str, str]], generator: np.random.Generator) -> dict[str, list[Any]]:
    other = _swapped([module for module, _, _ in described])
    names = [name for _, name, _ in described]
    right = [description for _, _, description in described]
    wrong = [right[i] for i in other]
    order = generator.permutation(2 * len(described))
    columns: dict[str, list[Any]] = {
        "name": names + names,
        "description": right + wrong,
        "label": [1] * len(right) + [0] * len(wrong),
    }
    return {column: [values[i] for i in order] for column, values in columns.items()}


def _swapped(modules: list[str]) -> list[int]:
    """Give every row another row's number: for half of them one of the same module, for the rest one of another."""
    groups: dict[str, list[int]] = {}
    for row, module in enumerate(modules):
        groups.setdefault(module, []).append(row)
    other = list(range(len(modules)))
    apart: list[int] = []
    due = 0.0
    by_size = sorted(groups.values(), key=len)
    for rows in by_size:
        # What small modules cannot give, since one row alone has no partner, the larger ones make up for.
        due += len(rows) / 2
        n_within = min(round(due), len(rows))
        n_within = n_within if n_within >= 2 else 0
        due -= n_within
        within = rows[:n_within]
        for row, partner in zip(within, within[1:] + within[:1], strict=True):
            other[row] = partner
        apart.append(n_within)
    across = [row for rows, n_within in zip(by_size, apart, strict=True) for row in rows[n_within:]]
    # The rows lie module by module: a step as long as the largest module leaves every module.
    step = max(len(rows) - n_within for rows, n_within in zip(by_size, apart, strict=True))
    for place, row in enumerate(across):
        other[row] = across[(place + step) % len(across)]
    return other


def _described(library: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (module, name, description) with every name and every description once."""
    names: set[str] = set()
    descriptions: set[str] = set()
    for file in sorted(library.rglob("*.py")):
        path = file.relative_to(library).with_suffix("")
        parts = path.parts[:-1] if path.name == "__init__" else path.parts
        if _SKIPPED_FOLDERS.intersection(parts) or any(part.startswith("_") for part in parts):
            continue
        for name, docstring in _docstrings(file):
            full_name = ".".join((*parts, name))
            description = first_sentence(docstring, name.split("."))
            key = "".join(filter(str.isalnum, description.lower()))
            if description and full_name not in names and key not in descriptions:
                names.add(full_name)
                descriptions.add(key)
                yield ".".join(parts), full_name, description


def _docstrings(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with warnings.catch_warnings():
            # Old modules hold invalid escapes; that is their maintainers' concern.
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    pending: list[tuple[str, ast.AST]] = [("", node) for node in reversed(tree.body)]
    while pending:
        prefix, node = pending.pop()
        if not isinstance(node, _Definition):
            # Definitions under `if` and `try` count; those inside functions do not.
            pending.extend((prefix, child) for child in reversed([*ast.iter_child_nodes(node)]) if _may_define(child))
            continue
        if node.name.startswith("_") and not node.name.endswith("__"):
            continue
        if docstring := ast.get_docstring(node):
            yield prefix + node.name, docstring
        if isinstance(node, ast.ClassDef):
            pending.extend((f"{prefix}{node.name}.", child) for child in reversed(node.body))


def _may_define(node: ast.AST) -> bool:
    return isinstance(node, ast.stmt | ast.ExceptHandler)


def first_sentence(docstring: str, name: list[str]) -> str:
    """Take the first sentence of a docstring, without the name or signature that it may begin with.

    Args:
        docstring: Cleaned of its indentation.
        name: The parts of the name it documents, the innermost last.

    Returns:
        10 to 300 characters on one line, or "" where there is no such sentence.
    """
    own = "|".join(re.escape(part) for part in (name[-1], ".".join(name)))
    signature = (
        rf"^[\s`*'\"]*(?:class\s+)?(?:\w+\.)*(?:{own})\s*(?:\([^)]*\)+)?[`*'\"]*"
        r"(?:\s*->\s*[^\n.:]*)?\s*(?:--?|=+>?|:)?\s*"
    )
    rest = docstring.strip()
    while (
        (match := re.match(signature, rest, flags=re.IGNORECASE)) and match.end() and _is_whole_word(rest, match.end())
    ):
        rest = rest[match.end() :]
    paragraph = " ".join(rest.split("\n\n")[0].split())
    sentence = _SENTENCE_END.split(paragraph)[0].strip()
    is_prose = 10 <= len(sentence) <= 300 and len(sentence.split()) >= 3 and sentence.isprintable()
    # A small first letter would tell that a name was cut off.
    return sentence[0].upper() + sentence[1:] if is_prose else ""


def _is_whole_word(text: str, end: int) -> bool:
    """Say whether a cut at ``end`` leaves no half of a word: `copy` is not the beginning of "copying"."""
    return end >= len(text) or not (text[end - 1].isalnum() and (text[end].isalnum() or text[end] in "_'"))


__all__ = ["SPLITS", "docstring_rows", "docstring_source", "first_sentence"]
