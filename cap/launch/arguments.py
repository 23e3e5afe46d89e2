"""Read what W&B's sweep agents write on a command line: Python's spellings, hyphens, and whole configurations."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import accumulate
from typing import Any, get_args, get_type_hints

from hydra.core.override_parser.types import Quote, QuotedString

from cap.config.schema import TrainConfig

# W&B's own entry of a run's configuration.
_OF_WANDB = "_wandb"
_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""")


def multirun_first(arguments: Sequence[str]) -> list[str]:
    """Put ``-m`` in front: behind some keys, where people also write it, Hydra does not know what follows."""
    return sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))


def as_overrides(arguments: Sequence[str], known: Collection[str], schema: type = TrainConfig) -> list[str]:
    """Turn arguments that an agent has written into Hydra's ``key=value``; leave all others as they are.

    An agent writes ``str(value)`` after a key, so ``None`` stands for null where a key can be that (elsewhere it is a
    word like any other), and ``{'temperature': 0.3}`` for parameters nested below a group. A run that is taken up again
    gets all that it had logged as its configuration, not only what the sweep names: one dictionary for each group,
    W&B's own entry, and, where the sweep's command is not known, hyphens before each key. The groups are dropped then.
    They were composed from the rest of the same command, and what comes back through JSON need not be what went in: 1
    for 1.0 is one batch to Lightning, not all of them.
    Where a key takes a text, a name of digits stays as it was typed: Hydra would make 20240601 of 2024_06_01.

    Args:
        arguments: The command line, without the program.
        known: The dotted keys that can be set. Hydra's own options, like ``--config-name``, are none of them.
        schema: The dataclass of their types; a key that it does not type can be null.

    Returns:
        The command line that Hydra reads.
    """
    split = [_split(argument) for argument in arguments]
    never_null = {key for key, kinds in _kinds(schema) if type(None) not in kinds and Any not in kinds}
    texts = {key for key, kinds in _kinds(schema) if str in kinds}
    is_taken_up = _is_whole({key for key, _ in split}, known)
    read: list[str] = []
    for argument, (key, value) in zip(arguments, split, strict=True):
        if key == _OF_WANDB:
            continue
        if key not in known:
            read.append(argument)
            continue
        literal = _literal(value)
        if not isinstance(literal, dict):
            given = _choices(value)
            if key in texts:
                given = [_spell(part) if _is_respelt(part) else part for part in given]
            parts = [_read(part, can_be_null=key not in never_null) for part in given]
            read.append(f"{key}={','.join(parts)}")
        elif not is_taken_up:
            read += [f"{name}={_spell(leaf)}" for name, leaf in _leaves(literal, key)]
    return read


def _split(argument: str) -> tuple[str, str]:
    """Return key and value, and an empty key for what is no assignment."""
    key, equals, value = argument.removeprefix("--").partition("=")
    return (key, value) if equals else ("", "")


def _is_whole(keys: set[str], known: Collection[str]) -> bool:
    """Tell whether everything that a run logs is there; a sweep never names every group."""
    groups = {key.partition(".")[0] for key in known if "." in key}
    return _OF_WANDB in keys or (bool(groups) and groups <= keys)


def _kinds(schema: type, prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """List the keys, each with the types that it takes."""
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _kinds(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", get_args(kind) or (kind,)


def _is_respelt(value: str) -> bool:
    """Say whether Hydra would read a text as a number that is written in another way: 2024_06_01, 1.10, 1e3."""
    literal = _literal(value)
    return isinstance(literal, int | float) and not isinstance(literal, bool) and str(literal) != value


def _choices(value: str) -> list[str]:
    """Split what a multirun takes one after the other; commas within quotes and brackets separate nothing."""
    plain = _QUOTED.sub(lambda quoted: "x" * len(quoted[0]), value)
    depths = list(accumulate((sign in "([{") - (sign in ")]}") for sign in plain))
    ends = [i for i, (sign, depth) in enumerate(zip(plain, depths, strict=True)) if sign == "," and depth == 0]
    return [value[begin + 1 : end] for begin, end in zip([-1, *ends], [*ends, len(value)], strict=True)]


def _read(value: str, *, can_be_null: bool) -> str:
    literal = _literal(value)
    if literal is None:
        return "null" if can_be_null else value
    return _spell(literal) if _holds_none(literal) else value


def _literal(value: str) -> object:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value  # a word, a path, or Hydra's own grammar


def _holds_none(literal: object) -> bool:
    return literal is None or (isinstance(literal, list) and any(_holds_none(entry) for entry in literal))


def _leaves(node: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}", value


def _spell(value: object) -> str:
    """Write a Python value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(_spell(entry) for entry in value)}]"
    if isinstance(value, str):
        # Quotes keep commas, brackets and words like null what they are: text.
        return QuotedString(value, Quote.single).with_quotes()
    return str(value)


__all__ = ["as_overrides", "multirun_first"]
