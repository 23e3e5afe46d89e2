"""Lines of Python that ask a saved model and read its answers, for cards and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cap.base.kinds import Kind
from cap.base.words import spaced

_ANSWERS: dict[Kind, str] = {
    "classes": "answers = [labels[number] for number in logits.argmax(-1).tolist()]",
    "label_sets": "answers = [[labels[i] for i, logit in enumerate(row) if logit > 0] for row in logits.tolist()]",
    "number": "answers = logits[:, 0].tolist()",
    "tags": "firsts = dict(reversed([(word, i) for i, word in enumerate(inputs.word_ids(0)) if word is not None]))\n"
    "answers = [labels[int(logits[0, firsts[word]].argmax())] for word in sorted(firsts)]  # one tag a word",
}


def described(kind: Kind, columns: Sequence[str], *, between: str = "") -> dict[str, Any]:
    """Say for a record what ``asked`` will want to know of a task, and of what stands before a word of a list."""
    return {"kind": kind, "columns": list(columns), **({"between": between} if between else {})}


def asked(asks: Mapping[str, Any] | None, *, max_length: int, of: Literal["model", "session"]) -> str:
    """Write the lines, which run behind those that load ``model`` or an onnxruntime ``session``, and a ``tokenizer``.

    Args:
        asks: What ``described`` gave; None, as in an old record, for no lines.
        max_length: Tokens that the model was trained to read; longer texts are cut, which it may not survive otherwise.
        of: What answers.

    Returns:
        Lines that leave ``answers``, or ``start`` and ``end`` of spans, logits by token; a line break comes first.
        ``{folder}`` is where the model lies. None of encodings, which have lines of their own.
    """
    if asks is None or asks["kind"] == "encoding":
        return ""
    kind: Kind = asks["kind"]
    tensors = "pt" if of == "model" else "np"
    lines = [_inputs(kind, asks["columns"], max_length, tensors, between=asks.get("between", ""))]
    if kind == "span":
        pair = "start, end = session.run(None, dict(inputs))"
        found = "found = model(**inputs)\nstart, end = found.start_logits, found.end_logits"
        return "\n".join(["", *lines, found if of == "model" else pair])
    lines.append("logits = model(**inputs).logits" if of == "model" else "logits = session.run(None, dict(inputs))[0]")
    if "labels" in _ANSWERS[kind]:
        config = "model.config" if of == "model" else 'AutoConfig.from_pretrained("{folder}")'
        lines.append(f"labels = {config}.id2label")
    return "\n".join(["", *lines, _ANSWERS[kind]])


def _inputs(kind: Kind, columns: Sequence[str], max_length: int, tensors: str, *, between: str) -> str:
    names = [column.replace("_", " ").replace('"', "").replace("{", "").replace("}", "") for column in columns]
    texts = ", ".join(f'["the {name}"]' for name in names)
    cut = '"only_second"' if kind == "span" else "True"
    how = f"padding=True, truncation={cut}, max_length={max_length}"
    if kind == "tags":
        words = ", ".join(f'"{word}"' for word in spaced(["the", "words", "of", "a", "text"], between))
        texts, how = f"[[{words}]]", f"is_split_into_words=True, {how}"
    return f'inputs = tokenizer({texts}, {how}, return_tensors="{tensors}")'


__all__ = ["asked", "described"]
