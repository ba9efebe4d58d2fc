"""Loading and splitting documents, and the errors that bad input gives."""

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.data.text import load_documents, split_documents
from unmask.errors import UserError


def _write(path, data: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "README"])
def test_text_file_is_one_document_with_plain_line_ends(tmp_path, name: str) -> None:
    path = _write(tmp_path / name, b"\xef\xbb\xbfone\r\ntwo\rthree \xc3\xa9\n")
    assert load_documents(path) == ["one\ntwo\nthree é\n"]


def test_form_feeds_separate_documents(tmp_path) -> None:
    assert load_documents(_write(tmp_path / "a.txt", b"one\n\f\ntwo\n\n\f \n\fthree")) == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path, name: str) -> None:
    lines = [json.dumps({"id": i, "body": f"text\r\n{i}"}) for i in range(4)]
    path = _write(tmp_path / name, "\n".join([lines[0], "", *lines[1:]]).encode())
    assert load_documents(path, text_field="body") == [f"text\n{i}" for i in range(4)]
    assert load_documents(path, text_field="body", limit=2) == ["text\n0", "text\n1"]


def test_streaming_reads_only_what_is_asked(tmp_path) -> None:
    path = _write(tmp_path / "a.jsonl", b'{"text": "fine"}\nbroken\n')
    stream = load_documents(path, streaming=True)
    assert next(stream) == "fine"
    with pytest.raises(UserError, match="line 2"):
        next(stream)
    assert list(load_documents(path, streaming=True, limit=1)) == ["fine"]


def test_folder_is_sorted_recursive_and_skips_hidden_and_empty_files(tmp_path) -> None:
    for name, text in {"b.txt": "2", "a/z.md": "1", ".git/x.txt": "no", ".hidden.txt": "no", "c.txt": ""}.items():
        _write(tmp_path / name, text.encode())
    _write(tmp_path / "picture.png", b"\0\xff")
    assert load_documents(tmp_path) == ["1", "2"]


def test_saved_data_set_and_its_splits(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    plain = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
    plain.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"test": plain}).save_to_disk(tmp_path / "dict")
    assert load_documents(tmp_path / "plain", limit=2) == ["a", "b"]
    assert load_documents(tmp_path / "dict", split="test") == ["a", "b", "c"]
    with pytest.raises(UserError, match="no split 'train'; the splits are test"):
        load_documents(tmp_path / "dict")
    with pytest.raises(UserError, match=r"record 0: field 'body' is missing.*'text'"):
        load_documents(tmp_path / "plain", text_field="body")


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*args: object, **kwargs: object) -> None:
        assert args == ("someone/data", "small")
        assert kwargs == {"split": "train", "streaming": True}
        raise ConnectionError("Couldn't reach the hub\nlong traceback")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError) as caught:
        next(load_documents("someone/data:small", streaming=True))
    assert "Couldn't reach the hub" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.txt", b"abc\0def", "zero byte at offset 3"),
        ("a.txt", "abc".encode("utf-16-le"), "zero byte at offset 1"),
        ("a.txt", b"caf\xe9 noir", "not UTF-8 .byte 0xe9 at offset 3"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "byte 0xe9 at offset 24"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": ', "line 3 is not valid JSON"),
        ("a.jsonl", b'{"body": "a", "id": 1}', "line 1: field 'text' is missing.*'body', 'id'"),
        ("a.jsonl", b'{"text": 3}', "field 'text' is int"),
        ("a.jsonl", b"[1]", "line 1 is a JSON list"),
        ("a.csv", b"a,b", "suffix '.csv'"),
    ],
)
def test_bad_content_is_named(tmp_path, name: str, data: bytes, message: str) -> None:
    path = _write(tmp_path / name, data)
    with pytest.raises(UserError, match=message) as caught:
        load_documents(path)
    assert str(path) in str(caught.value)


def test_damaged_gzip_is_named(tmp_path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(b"not gzip")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"some text " * 100)[:-12])
    for name in ("a.txt.gz", "b.txt.gz"):
        with pytest.raises(UserError, match="not a whole gzip"):
            load_documents(tmp_path / name)


@pytest.mark.parametrize("source", ["no/such/file.txt", "nothing.jsonl", "../up", "corpus", "/no/where"])
def test_missing_path_is_told_without_asking_the_hub(source: str) -> None:
    with pytest.raises(UserError, match=f"no file or folder {re.escape(source)}"):
        load_documents(source)


def test_slip_in_a_local_path_is_not_a_data_set(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no file or folder data/corpsu"):
        load_documents("data/corpsu")


def test_folder_without_text_says_what_it_met(tmp_path) -> None:
    _write(tmp_path / "a.csv", b"x")
    with pytest.raises(UserError, match=r"met \.csv; wanted \.txt"):
        load_documents(tmp_path)


def test_limit_must_be_positive(tmp_path) -> None:
    with pytest.raises(UserError, match="limit=0"):
        load_documents(tmp_path, limit=0)


# -- splitting -------------------------------------------------------------------------------------------------


@given(
    documents=st.lists(st.text(min_size=1, max_size=30), min_size=2, max_size=30),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 5),
)
def test_split_keeps_every_document_whole_and_in_order(documents: list[str], share: float, seed: int) -> None:
    numbered = [f"{i:03d}{document}" for i, document in enumerate(documents)]
    train, held_out = split_documents(numbered, share, seed)
    assert train
    assert held_out
    assert sorted(train + held_out) == numbered
    assert train == sorted(train)
    assert held_out == sorted(held_out)


def test_split_share_and_seed() -> None:
    documents = [f"{i:04d}" * (1 + i % 7) for i in range(2000)]
    total = sum(map(len, documents))
    splits = [split_documents(documents, 0.05, seed)[1] for seed in (0, 1)]
    for held_out in splits:
        assert 0.05 <= sum(map(len, held_out)) / total < 0.051
    assert splits[0] == split_documents(documents, 0.05, 0)[1]
    assert splits[0] != splits[1]


def test_a_huge_document_is_not_the_held_out_one() -> None:
    for seed in range(10):
        assert split_documents(["x" * 1000, "y" * 10], 0.05, seed) == (["x" * 1000], ["y" * 10])


def test_no_share_holds_nothing_out() -> None:
    assert split_documents(["a", "b"], 0.0) == (["a", "b"], [])


@given(text=st.text(alphabet="ab \n", min_size=2, max_size=300), share=st.floats(0.01, 0.5))
def test_single_document_is_cut_without_loss(text: str, share: float) -> None:
    (train,), (held_out,) = split_documents([text], share)
    assert train + held_out == text
    assert train
    assert held_out


def test_single_document_is_cut_at_the_last_paragraph_before_the_mark() -> None:
    text = ("word " * 30 + "\n" + "word " * 30 + "\n\n") * 20
    (train,), (held_out,) = split_documents([text], 0.1)
    assert train.endswith("\n\n")
    assert 0.1 <= len(held_out) / len(text) < 0.2
    (train,), _ = split_documents(["a line\n" * 100], 0.1)
    assert train.endswith("line\n")
    (train,), (held_out,) = split_documents(["x" * 100], 0.1)
    assert (len(train), len(held_out)) == (90, 10)


@pytest.mark.parametrize(("documents", "share"), [([], 0.1), (["a"], 0.1), (["a", "b"], 1.0), (["a", "b"], -0.1)])
def test_impossible_splits_are_refused(documents: list[str], share: float) -> None:
    with pytest.raises(UserError, match="splitting documents"):
        split_documents(documents, share)
