"""Fewer pieces: what a tokenizer makes of texts then, and what a model makes of the pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase, TokenizersBackend

from cap.base.errors import InputError
from cap.base.words import spaced
from cap.data.words import space_between
from cap.formats.pieces import numbers_of, require_known
from cap.formats.vocabulary import Smaller, count_changed, with_vocabulary
from cap.models.sources import tokenizer_key
from tests.formats.made_tokenizers import CORPUS, KINDS, ODD, OTHERS, SPECIALS, byte_bpe, wordpiece
from tests.models.tiny_models import FAMILY_NAMES, tiny_classifier, tiny_tokenizer

KEPT_BY_KIND: dict[str, Smaller] = {}
every_kind = pytest.mark.parametrize("kind", KINDS)


def smaller(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], family: str = "bert", rest: str = "split", **options: int
) -> Smaller:
    model = tiny_classifier(family, vocab_size=len(tokenizer), **options)
    return with_vocabulary(model, tokenizer, [texts], corpus="some texts", rest=rest)


def of_kind(kind: str) -> Smaller:
    """Make the smaller one of a kind, once for all tests."""
    if kind not in KEPT_BY_KIND:
        KEPT_BY_KIND[kind] = smaller(KINDS[kind](), CORPUS)
    return KEPT_BY_KIND[kind]


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def letters(found: list[str]) -> str:
    return "".join(piece.removeprefix("##") for piece in found if piece not in SPECIALS)


@every_kind
@pytest.mark.parametrize("text", CORPUS)
def test_the_texts_that_decided_keep_their_pieces(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    assert pieces(of_kind(kind).tokenizer, text) == pieces(tokenizer, text)


@every_kind
@pytest.mark.parametrize("text", OTHERS)
def test_another_text_falls_apart_into_what_is_left_and_nothing_is_lost(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    before, after = pieces(tokenizer, text), pieces(of_kind(kind).tokenizer, text)
    assert len(after) >= len(before)
    assert letters(after) == letters(before)
    assert "[UNK]" not in after


@every_kind
@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_no_text_is_too_odd(kind: str, text: str) -> None:
    found = of_kind(kind)
    batch = found.tokenizer(text, return_tensors="pt", truncation=True, max_length=30)
    with torch.no_grad():
        assert found.model(**batch).logits.isfinite().all()


@every_kind
def test_the_numbers_are_those_of_the_rows_that_are_left(kind: str) -> None:
    tokenizer = KINDS[kind]()
    found = of_kind(kind)
    left, n_rows = found.tokenizer.get_vocab(), len(found.vocabulary.numbers)
    assert sorted(left.values()) == list(range(n_rows))
    assert {piece: int(found.vocabulary.numbers[number]) for piece, number in left.items()} == {
        piece: number for piece, number in tokenizer.get_vocab().items() if piece in left
    }
    assert n_rows == found.model.config.vocab_size < found.vocabulary.n_dense == len(tokenizer)
    assert pieces(found.tokenizer, "the film")[:1] + pieces(found.tokenizer, "the film")[-1:] == ["[CLS]", "[SEP]"]


@every_kind
def test_a_smaller_tokenizer_is_the_same_when_it_is_loaded_again(kind: str, tmp_path) -> None:
    found = of_kind(kind).tokenizer
    found.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [again(text)["input_ids"] for text in OTHERS] == [found(text)["input_ids"] for text in OTHERS]
    assert again.pad_token_id == found.pad_token_id == again.get_vocab()["[PAD]"]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_model_of_every_family_gives_the_same_logits_of_the_same_pieces(family: str) -> None:
    letters = [mark + letter for mark in ("", "##") for letter in "acdgmnost"]
    tokenizer = tiny_tokenizer(("cat", "dog", "sat", "on", "mat", *letters))
    model = tiny_classifier(family, vocab_size=len(tokenizer))
    found = with_vocabulary(model, tokenizer, [["dog sat"]], corpus="two words")
    batch = dict(found.tokenizer(["dog sat", "sat"], padding=True, return_tensors="pt", return_token_type_ids=False))
    assert len(found.vocabulary.numbers) == 2 + 5 + len(letters)  # with the special tokens
    with torch.no_grad():
        expected = model(**found.vocabulary.numbered_as_before(batch)).logits
        torch.testing.assert_close(found.model(**batch).logits, expected, rtol=0, atol=1e-6)


def test_the_special_numbers_of_the_configuration_follow() -> None:
    tokenizer = byte_bpe()
    ids = {f"{name}_token_id": tokenizer.get_vocab()[f"[{token}]"] for name, token in (("pad", "PAD"), ("cls", "CLS"))}
    found = smaller(tokenizer, CORPUS, "modernbert", **ids)
    config, left = found.model.config, found.tokenizer.get_vocab()
    assert (config.pad_token_id, config.cls_token_id) == (left["[PAD]"], left["[CLS]"])
    assert config.pad_token_id != ids["pad_token_id"]


def test_positions_that_are_counted_from_the_padding_number_stay() -> None:
    words = ("zebra", "yak", *SPECIALS, "dog", "cat", "c", "##a", "##t")
    tokenizer = TokenizersBackend(
        tokenizer_object=Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    found = smaller(tokenizer, ["dog"], "roberta", pad_token_id=2)
    assert found.model.config.pad_token_id == found.tokenizer.pad_token_id == 2
    assert "cat" not in found.tokenizer.get_vocab()


def test_padding_that_is_part_of_the_rules_has_the_new_number() -> None:
    tokenizer = byte_bpe()
    tokenizer.backend_tokenizer.enable_padding(pad_id=tokenizer.pad_token_id, pad_token="[PAD]")
    found = smaller(tokenizer, CORPUS).tokenizer
    assert found.backend_tokenizer.padding["pad_id"] == found.pad_token_id == found.get_vocab()["[PAD]"]


def test_changed_tokens_are_those_without_the_same_piece_at_the_same_place() -> None:
    tokenizer = wordpiece()
    counted = [
        count_changed(tokenizer, smaller(tokenizer, CORPUS, rest=rest), [["the filming"], ["the film is bad"]])
        for rest in ("split", "nearest")
    ]
    # "filming" was film ##ing. Now it is film ##i ##n ##g, or the ##ing has the row of another piece.
    assert counted == [{"validation_tokens": 7, "changed_tokens": 1, "changed": pytest.approx(1 / 7)}] * 2


def test_a_tokenizer_that_is_not_fast_is_refused() -> None:
    with pytest.raises(InputError, match=r"a fast one \(tokenizer\.json\), got PreTrainedTokenizerBase; leave"):
        with_vocabulary(tiny_classifier(), PreTrainedTokenizerBase(), [CORPUS], corpus="some texts")


def test_a_vocabulary_without_rows_for_the_special_tokens_is_refused() -> None:
    tokenizer = byte_bpe()  # its special tokens come last
    model = tiny_classifier(vocab_size=len(tokenizer) - 2)
    with pytest.raises(InputError, match=r"a tokenizer without one for \[SEP\]"):
        with_vocabulary(model, tokenizer, [CORPUS], corpus="some texts")


def test_a_vocabulary_without_its_unknown_token_is_refused() -> None:
    plain = Tokenizer(models.WordPiece({"dog": 0, "[PAD]": 1}, unk_token="[UNK]"))
    tokenizer = TokenizersBackend(tokenizer_object=plain, pad_token="[PAD]")
    with pytest.raises(InputError, match=r"a tokenizer without one for \[UNK\]"):
        with_vocabulary(tiny_classifier(), tokenizer, [["dog"]], corpus="some texts")


def test_pieces_that_are_joined_from_characters_are_refused() -> None:
    plain = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match="WordPiece, byte-level BPE or Unigram, got BPE on characters; leave"):
        require_known(json.loads(plain.to_str()))


def test_words_are_refused() -> None:
    with pytest.raises(InputError, match="got WordLevel"):
        require_known(json.loads(Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).to_str()))


def test_a_word_with_a_character_that_is_no_piece_stays_whole() -> None:
    words = (*SPECIALS, "fox", "café", "of", "f", "##o", "##f", "c", "##a", "o")
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}, strip_accents=False)
    found = smaller(tokenizer, ["o"]).tokenizer
    assert {"fox", "café"} <= found.get_vocab().keys()  # there is neither ##x nor ##é
    assert "of" not in found.get_vocab()
    assert pieces(found, "fox of café")[1:-1] == ["fox", "o", "##f", "café"]


@pytest.mark.parametrize("kind", KINDS)
def test_words_count_as_a_tagger_reads_them(kind: str) -> None:
    tokenizer = KINDS[kind]()
    rows = [["the", "plot"], ["a", "film"]]
    between = space_between(tokenizer)
    words = [spaced(row, between) for row in rows]
    model = tiny_classifier(vocab_size=len(tokenizer))
    found = with_vocabulary(model, tokenizer, [words], corpus="some words")
    for row in words:
        before, after = (one(row, is_split_into_words=True).tokens() for one in (tokenizer, found.tokenizer))
        assert after == before
    assert count_changed(tokenizer, found, [words])["changed_tokens"] == 0
    assert count_changed(tokenizer, found, [[["goodness"]]])["changed_tokens"] > 0


def test_parts_of_pieces_stay_even_where_no_text_ends_up_with_them() -> None:
    tokenizer = byte_bpe()
    rules = json.loads(smaller(tokenizer, CORPUS).tokenizer.backend_tokenizer.to_str())
    assert rules["model"]["merges"]
    left = numbers_of(rules)
    assert all({first, second, first + second} <= left.keys() for first, second in rules["model"]["merges"])


@pytest.fixture(scope="module")
def shared() -> tuple[PreTrainedTokenizerBase, torch.nn.Module, Smaller]:
    """Return a tokenizer and a model, and both where pieces that no text of the corpus uses share rows."""
    tokenizer = wordpiece()
    model = tiny_classifier(vocab_size=len(tokenizer))
    return tokenizer, model, with_vocabulary(model, tokenizer, [CORPUS], corpus="some texts", rest="nearest")


def nearest_used(model: torch.nn.Module, number: int) -> int:
    rows = model.get_input_embeddings().weight.detach()
    used = {one for text in CORPUS for one in wordpiece()(text, add_special_tokens=False)["input_ids"]}
    return min(sorted(used), key=lambda one: float((rows[one] - rows[number]).norm()))


def test_a_piece_whose_row_went_has_the_nearest_one_that_is_left(shared) -> None:
    tokenizer, model, found = shared
    kept = found.vocabulary.numbers.tolist()
    new, old = found.tokenizer.get_vocab(), tokenizer.get_vocab()
    assert new.keys() == old.keys()
    gone = [piece for piece, number in old.items() if number not in kept]
    assert {"yak", "##ing", "##ness", "seen"} <= set(gone)
    assert {piece: kept[new[piece]] for piece in gone} == {piece: nearest_used(model, old[piece]) for piece in gone}
    assert all(kept[new[piece]] == number for piece, number in old.items() if number in kept)


@pytest.mark.parametrize("text", OTHERS)
def test_shared_rows_leave_a_text_its_pieces_and_the_model_reads_the_nearest_ones(shared, text: str) -> None:
    tokenizer, model, found = shared
    kept = found.vocabulary.numbers.tolist()
    before, after = (one(text, return_tensors="pt") for one in (tokenizer, found.tokenizer))
    assert after.tokens() == before.tokens()
    numbers = [one if one in kept else nearest_used(model, one) for one in before["input_ids"][0].tolist()]
    with torch.no_grad():
        expected = model(**{**before, "input_ids": torch.tensor([numbers])}).logits
        torch.testing.assert_close(found.model(**after).logits, expected, rtol=0, atol=1e-6)


def test_rows_are_shared_after_loading_where_the_rules_were_written(shared, tmp_path) -> None:
    _, _, found = shared
    found.tokenizer.save_pretrained(tmp_path)
    lost = AutoTokenizer.from_pretrained(tmp_path)
    found.write_rules(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == found.tokenizer.get_vocab() != lost.get_vocab()
    assert [again(text)["input_ids"] for text in OTHERS] == [found.tokenizer(text)["input_ids"] for text in OTHERS]


@pytest.fixture
def folder_that_shares(shared, tmp_path) -> Path:
    _, _, found = shared
    found.tokenizer.save_pretrained(tmp_path)
    found.write_rules(tmp_path)
    return tmp_path


def test_a_tokenizer_that_shares_rows_has_one_key_whenever_it_is_loaded(folder_that_shares) -> None:
    assert len({tokenizer_key(AutoTokenizer.from_pretrained(folder_that_shares)) for _ in range(4)}) == 1


def test_a_tokenizer_that_shares_rows_cannot_be_cut_again(shared, folder_that_shares) -> None:
    again = AutoTokenizer.from_pretrained(folder_that_shares)
    with pytest.raises(InputError, match="must have numbers of their own, or saving it loses some, got the run's"):
        with_vocabulary(shared[1], again, [CORPUS], corpus="some texts")


def test_tokenizers_that_share_rows_otherwise_have_keys_of_their_own(shared) -> None:
    tokenizer, model, found = shared
    other = tiny_classifier(vocab_size=len(tokenizer))
    with torch.no_grad():
        other.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight.flip(1).roll(3, 1) ** 3)
    second = with_vocabulary(other, tokenizer, [CORPUS], corpus="some texts", rest="nearest")
    assert second.tokenizer.get_vocab() != found.tokenizer.get_vocab()
    assert tokenizer_key(second.tokenizer) != tokenizer_key(found.tokenizer)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"WordPiece"}))
def test_pieces_with_a_number_of_their_own_share_no_row(kind: str) -> None:
    with pytest.raises(InputError, match=r"vocabulary_rest=nearest needs a WordPiece tokenizer, .* got (BPE|Unigram);"):
        smaller(KINDS[kind](), CORPUS, rest="nearest")
