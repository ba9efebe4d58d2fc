"""Tokenizers: lossless, blind to special tokens in text, and fully described by one file."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers

from unmask.data.tokenizers import Tokenizer
from unmask.errors import UserError

CORPUS = ["the cat sat on the mat\n\nthe end\n" * 20, "Ünïcödé and 日本語 🎉 the cat\n" * 5]
ALPHABET = "abc [MASK]\n\tÜ日🎉"

BYTES = Tokenizer.bytes()
BPE = Tokenizer.bpe(CORPUS, vocab_size=280)
CHARACTERS = Tokenizer.characters([ALPHABET])
ALL = {"bytes": BYTES, "bpe": BPE, "characters": CHARACTERS}


@pytest.fixture(params=ALL)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ALL[request.param]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(text=st.text() | st.text(alphabet=" \n\t[MASKEOPD]éa"))
@settings(max_examples=300, deadline=None)
def test_round_trip_on_any_text(kind: str, text: str) -> None:
    ids = ALL[kind].encode(text)
    assert ALL[kind].decode(ids) == text
    assert "".join(ALL[kind].decode_tokens(ids)) == text
    assert len(ALL[kind].decode_tokens(ids)) == len(ids)
    assert not {ALL[kind].mask_id, ALL[kind].pad_id, ALL[kind].eos_id} & set(ids)


@given(text=st.text(alphabet=ALPHABET))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_characters(text: str) -> None:
    ids = CHARACTERS.encode(text)
    assert len(ids) == len(text)
    assert CHARACTERS.decode(ids) == text
    assert CHARACTERS.decode_tokens(ids) == list(text)


@given(ids=st.lists(st.integers(0, 258)))
@settings(max_examples=200, deadline=None)
def test_any_ids_can_be_shown_one_string_each(ids: list[int]) -> None:
    shown = BYTES.decode_tokens(ids)
    assert len(shown) == len(ids)
    assert [piece.startswith("░") for piece in shown] == [i == 258 for i in ids]


def test_byte_ids_are_byte_values() -> None:
    assert BYTES.encode("aé\n") == list("aé\n".encode())
    assert (BYTES.vocab_size, BYTES.pad_id, BYTES.eos_id, BYTES.mask_id) == (259, 256, 257, 258)


def test_special_ids_are_distinct_and_inside_the_vocabulary(tokenizer: Tokenizer) -> None:
    ids = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id}
    assert ids == set(range(tokenizer.vocab_size - 3, tokenizer.vocab_size))


def test_decode_drops_or_spells_special_tokens(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("ab"), tokenizer.mask_id, *tokenizer.encode("c"), tokenizer.eos_id, tokenizer.pad_id]
    assert tokenizer.decode(ids) == "abc"
    assert tokenizer.decode(torch.tensor(ids), skip_special=False) == "ab[MASK]c[EOS][PAD]"
    assert "".join(tokenizer.decode_tokens(ids)) == "ab░c"
    assert "".join(tokenizer.decode_tokens(torch.tensor(ids), mask="_", special="$")) == "ab_c$$"


def test_a_character_cut_by_a_mask_shows_as_replacement() -> None:
    first, second = "é".encode()
    assert BYTES.decode_tokens([first, second]) == ["", "é"]
    assert BYTES.decode_tokens([first, BYTES.mask_id, 97]) == ["\ufffd", "░", "a"]
    assert BYTES.decode_tokens([97, first]) == ["a", "\ufffd"]


def test_bpe_compresses_and_honours_its_size() -> None:
    assert BPE.vocab_size == 280
    assert len(BPE.encode(CORPUS[0])) < len(CORPUS[0].encode()) / 2
    assert Tokenizer.bpe(CORPUS, vocab_size=280).fingerprint() == BPE.fingerprint()
    with pytest.raises(UserError, match="259"):
        Tokenizer.bpe(CORPUS, vocab_size=258)


def test_unknown_character_is_named_with_its_position() -> None:
    with pytest.raises(UserError, match=r"'z' \(U\+007A\) at position 2"):
        CHARACTERS.encode("abz")
    with pytest.raises(UserError, match="empty"):
        Tokenizer.characters(["", ""])


def test_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"U\+D800 at position 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, bad: int) -> None:
    for decode in (tokenizer.decode, tokenizer.decode_tokens):
        with pytest.raises(ValueError, match=f"id {bad} at position 1"):
            decode([0, bad])


def test_saved_file_alone_restores_everything(tokenizer: Tokenizer, tmp_path) -> None:
    path = tokenizer.save(tmp_path / "model")
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    for loaded in (Tokenizer.load(path), Tokenizer.load(path.parent)):
        assert loaded.fingerprint() == tokenizer.fingerprint()
        for name in ("vocab_size", "mask_id", "pad_id", "eos_id"):
            assert getattr(loaded, name) == getattr(tokenizer, name)
        assert loaded.encode("abc [MASK]") == tokenizer.encode("abc [MASK]")
    if tokenizer is CHARACTERS:
        with pytest.raises(UserError, match="'z'"):
            loaded.encode("z")


def test_fingerprint_tells_vocabularies_apart() -> None:
    others = [BYTES, BPE, CHARACTERS, Tokenizer.bpe(CORPUS, 281), Tokenizer.characters(["abd"])]
    assert len({t.fingerprint() for t in others}) == len(others)


def _foreign(tmp_path, names: list[str], special: bool = True, unknown: bool = True):
    words = ["hello", "world", *(["[UNK]"] if unknown else []), *names]
    core = Core(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]" if unknown else None))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    (core.add_special_tokens if special else core.add_tokens)(names)
    core.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>", "<|mask|>", "<|mdm_mask|>"])
@pytest.mark.parametrize("special", [True, False])
def test_foreign_file_with_a_usual_mask_name(tmp_path, mask: str, special: bool) -> None:
    tokenizer = Tokenizer.from_file(_foreign(tmp_path, [mask, "</s>"], special))
    assert (tokenizer.mask_id, tokenizer.eos_id, tokenizer.pad_id) == (3, 4, 4)
    assert tokenizer.encode("hello world") == [0, 1]
    assert 3 not in tokenizer.encode(f"hello {mask}")


def test_foreign_file_without_mask_says_what_it_has(tmp_path) -> None:
    path = _foreign(tmp_path, ["<extra_0>", "</s>"])
    with pytest.raises(UserError, match=r"no mask token.*<extra_0>, </s>.*mask_token="):
        Tokenizer.from_file(path)
    with pytest.raises(UserError, match=r"no token '<extra_9>'.*<extra_0>"):
        Tokenizer.from_file(path, mask_token="<extra_9>")
    tokenizer = Tokenizer.from_file(path, mask_token="<extra_0>")
    assert tokenizer.mask_id == 3
    saved = Tokenizer.load(tokenizer.save(tmp_path / "again"))
    assert (saved.mask_id, saved.eos_id) == (3, 4)


def test_foreign_wordpiece_text_never_becomes_a_special_id(tmp_path) -> None:
    path = _foreign(tmp_path, ["[MASK]", "[EOS]"])
    description = json.loads(path.read_text())
    description["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"reads the plain text \[MASK\] as a special token"):
        Tokenizer.from_file(path).encode("hello [MASK]")


def test_tokens_of_a_foreign_byte_fallback_file_show_as_text(tmp_path) -> None:
    words = ["\u2581hello", "lo", "<0xC3>", "<0xA9>", "<mask>", "</s>", "##y"]
    core = Core(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
    core.add_special_tokens(["<mask>", "</s>"])
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode_tokens([0, 1, 2, 3, 4, 5, 6]) == [" hello", "lo", "", "é", "░", "", "y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not valid JSON"), ("[]", "no 'model'"), ('{"model": {"type": "What"}}', "not a tokenizer.json")],
)
def test_broken_file_is_one_clear_error(tmp_path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path)


def test_missing_file_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(UserError, match="no file"):
        Tokenizer.load(tmp_path)
