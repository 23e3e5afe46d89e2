"""Which pieces a fast tokenizer cannot do without, and the same tokenizer with fewer of them.

Rules are what ``tokenizer.json`` holds, as plain JSON values. A text all of whose pieces are kept has the same pieces
as before:

- WordPiece takes the longest piece that fits, and what it took is still there;
- byte-level BPE joins the pair of the lowest rank again and again: every join on the way to a kept piece is kept;
- Unigram takes the likeliest of all ways to part a text, and of fewer ways it is the same one.

Any other text falls apart into smaller pieces, in the end into single characters, or bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cap.base.errors import InputError

Rules = dict[str, Any]
_KINDS = ("WordPiece", "BPE", "Unigram")
# What BERT's and RoBERTa's own post-processors put around a text; others have a template.
_ENDS = ("cls", "sep")


def require_known(rules: Rules) -> None:
    """Check that pieces can be taken out of a tokenizer.

    Raises:
        InputError: If it is of a kind whose texts might not fall apart into what is left.
    """
    model = rules["model"]
    kind = model.get("type")
    is_known = kind in _KINDS
    if kind == "BPE":
        marks = (model.get("continuing_subword_prefix"), model.get("end_of_word_suffix"))
        is_known = "ByteLevel" in _types(rules.get("pre_tokenizer")) and not any(marks)
        kind = "BPE on characters"
    if not is_known:
        raise InputError(
            f"vocabulary can be cut where the tokenizer is WordPiece, byte-level BPE or Unigram, got {kind}; leave "
            f"vocabulary out, and the model keeps all of its pieces"
        )


def numbers_of(rules: Rules) -> dict[str, int]:
    """Return the number of every piece and every added token."""
    pieces = rules["model"]["vocab"]
    found = {piece: number for number, (piece, _) in enumerate(pieces)} if isinstance(pieces, list) else dict(pieces)
    return found | {token["content"]: token["id"] for token in rules["added_tokens"]}


def always_kept(rules: Rules) -> set[int]:
    """Return the numbers of what stays whatever the texts are.

    These are single characters, added and special tokens, and pieces with a character that is no piece of its own.
    """
    model, numbers = rules["model"], numbers_of(rules)
    kept = {number for piece, number in numbers.items() if not _falls_apart(model, piece, numbers)}
    kept |= {token["id"] for token in rules["added_tokens"]}
    kept |= set(_numbers_in_processor(rules.get("post_processor")))
    if rules.get("padding"):
        kept.add(rules["padding"]["pad_id"])
    unknown = model.get("unk_id") if model["type"] == "Unigram" else numbers.get(model.get("unk_token"))
    return kept if unknown is None else kept | {unknown}


def with_parts(rules: Rules, kept: Iterable[int]) -> set[int]:
    """Add the pieces that others are joined from; only BPE joins any."""
    found = set(kept)
    if rules["model"]["type"] != "BPE":
        return found
    numbers = numbers_of(rules)
    ranks = {tuple(pair): rank for rank, pair in enumerate(rules["model"]["merges"])}
    joined = found - {token["id"] for token in rules["added_tokens"]}
    pieces = [piece for piece, number in numbers.items() if number in joined]
    return found | {numbers[part] for piece in pieces for part in _joined_on_the_way(piece, ranks)}


def require_shareable(rules: Rules) -> None:
    """Check that pieces can share a number.

    Raises:
        InputError: If pieces are joined or numbered by their place, so that each has one of its own.
    """
    kind = rules["model"].get("type")
    if kind != "WordPiece":
        raise InputError(
            f"vocabulary_rest=nearest needs a WordPiece tokenizer, in which two pieces can have one number, got "
            f"{kind}; leave vocabulary_rest at split"
        )


def with_pieces(rules: Rules, kept: Sequence[int], shared: Mapping[int, int] | None = None) -> Rules:
    """Copy the rules with some pieces alone, renumbered in the order given.

    Args:
        rules: Of a known kind, see ``require_known``; they are not changed.
        kept: Numbers that stay, ascending; those of ``always_kept`` and ``with_parts`` are among them.
        shared: For other numbers, which of the kept ones stands for each; these pieces stay. See
            ``require_shareable``.
    """
    changed = copy.deepcopy(rules)
    model, new = changed["model"], {old: number for number, old in enumerate(kept)}
    new |= {other: new[one] for other, one in (shared or {}).items()}
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = new.get(model.get("unk_id"))
    else:
        model["vocab"] = {piece: new[number] for piece, number in model["vocab"].items() if number in new}
    if "merges" in model:
        left = model["vocab"]
        model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= left.keys()]
    for token in changed["added_tokens"]:
        token["id"] = new[token["id"]]
    if changed.get("padding"):
        changed["padding"]["pad_id"] = new[changed["padding"]["pad_id"]]
    _renumber_processor(changed.get("post_processor"), new)
    return changed


def _falls_apart(model: Rules, piece: str, numbers: Mapping[str, int]) -> bool:
    """Say whether a text of this piece can be read as single characters, or bytes, in its place."""
    if model["type"] == "Unigram":
        if len(piece) == 6 and piece.startswith("<0x"):
            return False
        if model.get("byte_fallback"):
            return len(piece) > 1
    mark = model["continuing_subword_prefix"] if model["type"] == "WordPiece" else ""
    letters = piece.removeprefix(mark)
    first = piece[: len(piece) - len(letters) + 1]
    parts = [first, *(mark + letter for letter in letters[1:])]
    return len(parts) > 1 and all(part in numbers for part in parts)


def _joined_on_the_way(piece: str, ranks: Mapping[tuple[str, ...], int]) -> Iterator[str]:
    """Yield what is joined until a piece stands there; in a word around it the same happens in the same order."""
    parts = list(piece)
    while True:
        joins = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not joins:
            return
        place = min(joins)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
        yield parts[place]


def _types(node: Any) -> set[str]:
    """List the types of a part of the rules and of all that is in it."""
    if isinstance(node, list):
        return {name for item in node for name in _types(item)}
    if not isinstance(node, dict):
        return set()
    return {str(node.get("type"))} | {name for item in node.values() for name in _types(item)}


def _processors(node: Any) -> list[Any]:
    """List the post-processors: those of a sequence, or the only one, or none."""
    if node is None:
        return []
    return [inner for item in node["processors"] for inner in _processors(item)] if "processors" in node else [node]


def _numbers_in_processor(node: Any) -> Iterator[int]:
    for processor in _processors(node):
        for token in processor.get("special_tokens", {}).values():
            yield from token["ids"]
        yield from (processor[end][1] for end in _ENDS if end in processor)


def _renumber_processor(node: Any, new: Mapping[int, int]) -> None:
    for processor in _processors(node):
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = [new[number] for number in token["ids"]]
        for end in _ENDS:
            if end in processor:
                token, number = processor[end]
                processor[end] = [token, new[number]]


__all__ = ["Rules", "always_kept", "numbers_of", "require_known", "require_shareable", "with_parts", "with_pieces"]
