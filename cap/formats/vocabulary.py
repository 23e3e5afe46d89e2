"""Leave a model the pieces that some texts use: fewer rows of its word embedding, and a tokenizer of these alone."""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.files import write_json
from cap.config.export import NEAREST, SPLIT
from cap.data.corpus import Part
from cap.formats.folders import build, fill
from cap.formats.pieces import (
    Rules,
    always_kept,
    numbers_of,
    require_known,
    require_shareable,
    with_parts,
    with_pieces,
)
from cap.models.families import family_of
from cap.models.sources import ModelSource, load_tokenizer, require_numbers_of_their_own

_TOKENIZER_FILE = "tokenizer.json"
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Say which rows of the word embedding are left.

    Args:
        corpus: The texts that decided, for people; never an absolute path.
        numbers: The numbers that the rows had, ascending; a row's place is its number now.
        n_dense: Rows of before.
        n_used: Pieces that the texts use.
        rest: What became of other pieces, see ``cap.config.export.RESTS``.
    """

    corpus: str
    numbers: Int64[Tensor, " rows"]
    n_dense: int
    n_used: int
    rest: str

    def numbered_as_before(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a batch of the smaller model with the token numbers of the whole one."""
        return {**batch, "input_ids": self.numbers[batch["input_ids"]]}

    def for_record(self) -> dict[str, Any]:
        """Return what was kept as plain JSON values."""
        rows = {"dense_rows": self.n_dense, "rows": len(self.numbers), "used": self.n_used}
        return {"corpus": self.corpus, **rows, "rest": self.rest}


@dataclass(frozen=True)
class Smaller:
    """Hold a model with fewer pieces, the tokenizer that belongs to it with its rules, and what was kept."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rules: Rules
    vocabulary: Vocabulary

    def write_rules(self, folder: Path) -> None:
        """Write the tokenizer's rules over those that its ``save_pretrained`` left.

        The tokenizers library writes one piece a number: of pieces that share one, all others would be lost.
        """
        write_json(folder / _TOKENIZER_FILE, self.rules)


def with_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Part],
    *,
    corpus: str,
    rest: str = SPLIT,
) -> Smaller:
    """Copy a model and its tokenizer without the rows of the word embedding that no text uses.

    Single characters (bytes, where pieces are made of these), special tokens and tokens that were added stay, so that
    every other text can still be read: in smaller pieces, or in the same ones, which share the rows of others.

    Args:
        model: A stock model, dense or compact, its masks folded; it is not changed.
        tokenizer: Its own, fast.
        texts: Some at a time, or lists of words, each with what must stand before it.
        corpus: What to call them.
        rest: What becomes of the pieces whose rows go, see ``cap.config.export.RESTS``.

    Raises:
        InputError: If the tokenizer is not fast, of a kind that is not known, lacks rows for its special tokens, or
            has pieces that share rows already.
    """
    rules = _rules_of(tokenizer)
    require_numbers_of_their_own(tokenizer, "the run's tokenizer")
    require_known(rules)
    if rest == NEAREST:
        require_shareable(rules)
    name, embedding = _word_embedding(model)
    n_dense = embedding.shape[0]
    kept = _required(rules, tokenizer, model.config, n_dense)
    plain, used = plain_tokenizer(tokenizer), set[int]()
    for part in texts:
        for encoding in _encode(plain, part):
            used.update(encoding.ids)
    chosen = sorted(with_parts(rules, kept | used))
    if chosen[-1] >= n_dense:
        raise InputError(
            f"the word embedding must have a row for every token, got {n_dense} rows and the token number "
            f"{chosen[-1]}; train with a tokenizer that belongs to the model"
        )
    vocabulary = Vocabulary(corpus=corpus, numbers=torch.tensor(chosen), n_dense=n_dense, n_used=len(used), rest=rest)
    config = _config_with(model, chosen)
    tensors = {**model.state_dict(), name: embedding[vocabulary.numbers]}
    smaller = fill(build(config), tensors, Path("the run's model"))
    new = with_pieces(rules, chosen, _nearest(embedding, rules, chosen, used) if rest == NEAREST else None)
    return Smaller(smaller, _tokenizer_with(tokenizer, new), new, vocabulary)


def _nearest(embedding: Tensor, rules: Rules, kept: list[int], used: set[int]) -> dict[int, int]:
    """Find for each row that goes the one at the least Euclidean distance, of those that texts use.

    Rows of rare characters lie near the middle of all rows, and so near any other, whatever these mean.
    """
    others = sorted({number for number in numbers_of(rules).values() if number < len(embedding)} - set(kept))
    candidates = sorted(used - {token["id"] for token in rules["added_tokens"]}) or kept
    rows, left = embedding.float(), embedding[torch.tensor(candidates)].float()
    found: dict[int, int] = {}
    for part in torch.tensor(others, dtype=torch.long).split(_ROWS_AT_ONCE):
        closest = torch.cdist(rows[part], left).argmin(dim=1)
        found |= {number: candidates[place] for number, place in zip(part.tolist(), closest.tolist(), strict=True)}
    return found


def count_changed(before: PreTrainedTokenizerBase, smaller: Smaller, texts: Iterable[Part]) -> dict[str, Any]:
    """Count the tokens of texts for which a smaller model does not read the same row at the same place.

    Returns:
        ``validation_tokens`` without special ones, of uncut texts; ``changed_tokens`` of these; ``changed``, the
        fraction.
    """
    first, second = plain_tokenizer(before), _plain(smaller.rules)
    numbers = smaller.vocabulary.numbers.tolist()
    n_tokens = n_same = 0
    for part in texts:
        pairs = zip(*(_encode(one, part) for one in (first, second)), strict=True)
        for old, new in pairs:
            n_tokens += len(old)
            same = _places(old, old.ids) & _places(new, [numbers[number] for number in new.ids])
            n_same += same.total()
    n_changed = n_tokens - n_same
    return {"validation_tokens": n_tokens, "changed_tokens": n_changed, "changed": n_changed / max(1, n_tokens)}


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Copy what a fast tokenizer stands on, without cutting or padding."""
    return _plain(_rules_of(tokenizer))


def _plain(rules: Rules) -> Tokenizer:
    plain = Tokenizer.from_str(json.dumps(rules))
    plain.no_truncation()
    plain.no_padding()
    return plain


def _rules_of(tokenizer: PreTrainedTokenizerBase) -> Rules:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise InputError(
            f"vocabulary can be cut where the tokenizer is a fast one ({_TOKENIZER_FILE}), got "
            f"{type(tokenizer).__name__}; leave vocabulary out, or train with a fast tokenizer"
        )
    rules: Rules = json.loads(backend.to_str())
    return rules


def _required(rules: Rules, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, n_rows: int) -> set[int]:
    """Return what stays whatever the texts are: what the tokenizer, and what the model cannot do without."""
    numbers = numbers_of(rules)
    unknown = rules["model"].get("unk_token")
    special = [*map(str, tokenizer.all_special_tokens), *([] if unknown is None else [unknown])]
    missing = [token for token in dict.fromkeys(special) if not 0 <= numbers.get(token, n_rows) < n_rows]
    if missing:
        raise InputError(
            f"vocabulary keeps the special tokens, each of which must have a row of the word embedding, got a "
            f"tokenizer without one for {', '.join(missing)}; train with a tokenizer that belongs to the model"
        )
    named = set(_special_numbers(config).values()) & set(numbers.values())
    kept = always_kept(rules) | {numbers[token] for token in special} | named
    if family_of(config.model_type).positions_follow_padding:
        # Positions are counted from the padding number: nothing before it may go.
        kept |= {number for number in numbers.values() if number <= config.pad_token_id}
    return kept


def _word_embedding(model: PreTrainedModel) -> tuple[str, Tensor]:
    """Return the word embedding, and its name among the weights."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise TypeError(f"the word embedding must be an nn.Embedding, got {type(embedding).__name__}")
    (name,) = (name for name, module in model.named_modules() if module is embedding)
    return f"{name}.weight", embedding.weight.detach()


def _special_numbers(config: PretrainedConfig) -> dict[str, int]:
    return {key: value for key, value in vars(config).items() if key.endswith("_token_id") and isinstance(value, int)}


def _config_with(model: PreTrainedModel, kept: list[int]) -> PretrainedConfig:
    changed, new = copy.deepcopy(model.config), {old: number for number, old in enumerate(kept)}
    for key, number in _special_numbers(changed).items():
        setattr(changed, key, new.get(number))
    changed.vocab_size = len(kept)
    changed.architectures = [type(model).__name__]
    return changed


def _tokenizer_with(tokenizer: PreTrainedTokenizerBase, rules: Rules) -> PreTrainedTokenizerBase:
    """Make a tokenizer of the same class and options with other rules."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        write_json(Path(folder) / _TOKENIZER_FILE, rules)
        return load_tokenizer(ModelSource(folder, "the smaller tokenizer", role="tokenizer"))


def _encode(plain: Tokenizer, part: Part) -> list[Encoding]:
    are_words = any(isinstance(one, list) for one in part)
    encodings: list[Encoding] = plain.encode_batch(part, add_special_tokens=False, is_pretokenized=are_words)
    return encodings


def _places(encoding: Encoding, numbers: list[int]) -> Counter[tuple[int, int | None, tuple[int, int]]]:
    # Where a row is a list of words, places are counted in each word.
    return Counter(zip(numbers, encoding.word_ids, encoding.offsets, strict=True))


__all__ = ["Smaller", "Vocabulary", "count_changed", "plain_tokenizer", "with_vocabulary"]
