"""Small fast tokenizers of every kind whose pieces can be cut, and texts for them."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerBase, TokenizersBackend

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CORPUS = ["the film is good", "the plot is bad", "a fine scene"]
OTHERS = ["the filming is goodness", "unfinished plots", "badly seen", "the goodbye"]
ODD = [
    "日本語 русский",
    "😀👩‍👩‍👧 🇪🇺",
    "\x00\x01\x1b\x07 bell",
    "",
    " \t\n",
    "\u200b\ufeff\u0301",
    "a" * 300,
    "[MASK] [UNK]",
]
# Used by no text, and in front of the special tokens, so that their numbers change.
_FIRST = ["zebra", "yak"]
_WORDS = [
    "the",
    "film",
    "##ing",
    "is",
    "good",
    "##ness",
    "##bye",
    "plot",
    "##s",
    "bad",
    "##ly",
    "fine",
    "scene",
    "seen",
]
_OPTIONS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def wordpiece() -> PreTrainedTokenizerBase:
    """Make one with words, parts of words, and all letters in both places."""
    pieces = dict.fromkeys([*_FIRST, *SPECIALS, *_WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)])
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)})


def byte_bpe() -> PreTrainedTokenizerBase:
    """Make one that has learned to join bytes on the corpus and on other texts, its special tokens behind the rest."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain.train_from_iterator(
        [*CORPUS, *OTHERS] * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    plain.add_special_tokens(SPECIALS)
    ends = [(token, plain.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    plain.post_processor = processors.Sequence([processors.ByteLevel(), processors.RobertaProcessing(*ends)])
    return TokenizersBackend(tokenizer_object=plain, **_OPTIONS)


def unigram() -> PreTrainedTokenizerBase:
    """Make one whose pieces are likelier the longer they are."""
    words = [f"\u2581{word.removeprefix('##')}" for word in _WORDS]
    parts = [word.removeprefix("##") for word in _WORDS if word.startswith("##")]
    pieces = dict.fromkeys([*_FIRST, *SPECIALS, *words, *parts, "\u2581", *LETTERS])
    plain = Tokenizer(models.Unigram([(piece, -10.0 / len(piece)) for piece in pieces], unk_id=len(_FIRST) + 1))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.add_special_tokens(SPECIALS)
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, plain.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return TokenizersBackend(tokenizer_object=plain, **_OPTIONS)


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "WordPiece": wordpiece,
    "byte-level BPE": byte_bpe,
    "Unigram": unigram,
}
