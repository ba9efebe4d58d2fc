"""The token cache: exact content, never a half-written folder, honest windows."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

from unmask.data.cache import TokenDataset, epoch_order
from unmask.data.tokenizers import Tokenizer
from unmask.errors import UserError

TOKENIZER = Tokenizer.bytes()
DOCUMENTS = ["abcdé", "fgh", "", "ijklmnop"]
STREAM = [i for d in DOCUMENTS for i in (*d.encode(), TOKENIZER.eos_id)]


@pytest.fixture
def dataset(tmp_path) -> TokenDataset:
    return TokenDataset.build(iter(DOCUMENTS), TOKENIZER, tmp_path / "cache")


def test_stream_offsets_and_counts(dataset: TokenDataset) -> None:
    again = TokenDataset.open(dataset.folder, TOKENIZER)
    for data in (dataset, again):
        assert data.tokens.tolist() == STREAM
        assert data.tokens.dtype == np.uint16
        assert data.num_tokens == len(STREAM)
        assert data.num_characters == sum(map(len, DOCUMENTS)) == len(STREAM) - len(DOCUMENTS) - 1
        assert data.num_documents == 4
        assert [data.document(i).tolist() for i in range(4)] == [[*d.encode(), 257] for d in DOCUMENTS]
        assert data.tokenizer_fingerprint == TOKENIZER.fingerprint()
        assert data.folder == dataset.folder
    assert sorted(p.name for p in dataset.folder.parent.iterdir()) == ["cache"]


def test_large_vocabulary_needs_32_bits(tmp_path) -> None:
    tokenizer = Tokenizer.characters([chr(c) for c in range(0x20, 0xD800)] + [chr(c) for c in range(0x10000, 0x14000)])
    assert tokenizer.vocab_size > 65536
    text = "a" + chr(0x13FFF)
    dataset = TokenDataset.build([text], tokenizer, tmp_path / "cache")
    assert dataset.tokens.dtype == np.uint32
    assert tokenizer.decode(dataset.document(0)) == text


@pytest.mark.parametrize("length", [1, 3, 7, 16, 20])
def test_windows_cover_the_stream_once(dataset: TokenDataset, length: int) -> None:
    windows = dataset.windows(length)
    batch = windows.batch(torch.arange(len(windows)))
    real = batch["attention_mask"]
    padding = -len(STREAM) % length
    assert (real is None) == (padding == 0)
    flat = batch["tokens"].flatten().tolist()
    assert flat == STREAM + [TOKENIZER.pad_id] * padding
    if real is not None:
        assert real.flatten().tolist() == [True] * len(STREAM) + [False] * padding
        assert windows.batch(torch.tensor([0]))["attention_mask"] is None or len(windows) == 1
    assert (windows.num_tokens, windows.num_characters) == (dataset.num_tokens, dataset.num_characters)


def test_document_ids_restart_in_each_row_and_are_absent_without_a_boundary(dataset: TokenDataset) -> None:
    windows = dataset.windows(6)
    whole = [k for k, d in enumerate(DOCUMENTS) for _ in range(len(d.encode()) + 1)]
    got = windows.batch(torch.tensor([1, 0]))["document_ids"]
    assert got is not None
    expected = [[k - whole[6 * w] for k in whole[6 * w : 6 * w + 6]] for w in (1, 0)]
    assert got.tolist() == expected
    assert expected == [[0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]]
    last = windows.batch(torch.tensor([len(windows) - 1]))
    assert last["document_ids"] is None
    assert last["attention_mask"] is not None
    assert dataset.windows(7).batch(torch.tensor([0]))["document_ids"] is None
    assert dataset.windows(8).batch(torch.tensor([0]))["document_ids"] is not None


def test_batch_order_follows_the_indices(dataset: TokenDataset) -> None:
    windows = dataset.windows(4)
    rows = [windows.batch(torch.tensor([i]))["tokens"][0].tolist() for i in range(4)]
    assert windows.batch(torch.tensor([2, 0, 2]))["tokens"].tolist() == [rows[2], rows[0], rows[2]]


@pytest.mark.parametrize("bad", [-1, 5])
def test_window_index_outside_is_refused(dataset: TokenDataset, bad: int) -> None:
    windows = dataset.windows(4)
    assert len(windows) == 6
    with pytest.raises(IndexError, match=r"there are 0\.\.5"):
        windows.batch(torch.tensor([0, bad + (bad > 0)]))


def test_too_short_text_is_refused_unless_allowed(dataset: TokenDataset) -> None:
    with pytest.raises(UserError, match=f"{len(STREAM)} tokens .16 characters., fewer than one window of 100"):
        dataset.windows(100)
    short = dataset.windows(100, allow_short=True)
    assert len(short) == 1
    assert int(short.batch(torch.tensor([0]))["attention_mask"].sum()) == len(STREAM)
    with pytest.raises(UserError, match="length=0"):
        dataset.windows(0)


def test_opening_does_not_read_the_tokens(tmp_path) -> None:
    folder = TokenDataset.build(["x"], TOKENIZER, tmp_path / "cache").folder
    size = 1 << 34  # a sparse file of 16 GiB of tokens: reading it would take minutes and all memory
    os.truncate(folder / "tokens.bin", 2 * size)
    np.save(folder / "offsets.npy", np.asarray([0, size], dtype=np.int64))
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"num_tokens": size}))
    start = time.perf_counter()
    windows = TokenDataset.open(folder, TOKENIZER).windows(1024)
    batch = windows.batch(torch.tensor([0, len(windows) - 1]))
    assert time.perf_counter() - start < 5
    assert batch["tokens"][0, :3].tolist() == [120, TOKENIZER.eos_id, 0]
    assert batch["tokens"][1].sum() == 0


def test_huge_document_is_encoded_in_pieces_without_loss(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.data.cache._MAX_PIECE", 10)
    bpe = Tokenizer.bpe(["the cat sat\n" * 9], 270)
    longest = 0

    def spy(text: str) -> list[int]:
        nonlocal longest
        longest = max(longest, len(text))
        return Tokenizer.encode(bpe, text)

    monkeypatch.setattr(bpe, "encode", spy)
    text = "the cat sat on\nthe\n\nmat " * 5 + "x" * 35
    dataset = TokenDataset.build([text], bpe, tmp_path / "cache")
    assert bpe.decode(dataset.document(0)) == text
    assert longest == 10


# -- damage ----------------------------------------------------------------------------------------------------


def test_other_tokenizer_is_refused(dataset: TokenDataset) -> None:
    other = Tokenizer.characters(["abc"])
    with pytest.raises(UserError, match=f"{TOKENIZER.fingerprint()}, met {other.fingerprint()}"):
        TokenDataset.open(dataset.folder, other)


@pytest.mark.parametrize("keep", [0, 1, 20])
def test_truncated_tokens_are_refused(dataset: TokenDataset, keep: int) -> None:
    os.truncate(dataset.folder / "tokens.bin", keep)
    with pytest.raises(UserError, match=r"damaged|truncated"):
        TokenDataset.open(dataset.folder)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "meta.json"])
def test_missing_file_is_refused(dataset: TokenDataset, name: str) -> None:
    (dataset.folder / name).unlink()
    with pytest.raises(UserError, match="token cache"):
        TokenDataset.open(dataset.folder)


def test_foreign_folders_are_neither_opened_nor_overwritten(tmp_path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a token cache"):
        TokenDataset.open(tmp_path / "precious")
    with pytest.raises(UserError, match="not a token cache"):
        TokenDataset.build(["x"], TOKENIZER, tmp_path / "precious")
    (tmp_path / "precious" / "meta.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="not that of a token cache"):
        TokenDataset.build(["x"], TOKENIZER, tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        TokenDataset.build(["x"], TOKENIZER, tmp_path / "file")


def test_newer_format_is_refused(dataset: TokenDataset) -> None:
    path = dataset.folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(UserError, match="format version 2, this version reads 1"):
        TokenDataset.open(dataset.folder)


def test_failed_build_leaves_nothing_and_keeps_the_old(tmp_path, dataset: TokenDataset) -> None:
    def failing():
        yield "fine"
        raise RuntimeError("source broke")

    for folder in (dataset.folder, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="source broke"):
            TokenDataset.build(failing(), TOKENIZER, folder)
    with pytest.raises(UserError, match="no document"):
        TokenDataset.build([], TOKENIZER, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert TokenDataset.open(dataset.folder).tokens.tolist() == STREAM


def test_rebuild_replaces_and_the_old_map_stays_readable(dataset: TokenDataset) -> None:
    new = TokenDataset.build(["new"], TOKENIZER, dataset.folder)
    assert new.tokens.tolist() == [*b"new", TOKENIZER.eos_id]
    assert dataset.tokens.tolist() == STREAM
    assert [p.name for p in dataset.folder.parent.iterdir()] == ["cache"]


def test_concurrent_builders_are_harmless(tmp_path) -> None:
    errors: list[BaseException] = []

    def build(text: str) -> None:
        try:
            for _ in range(15):
                data = TokenDataset.build([text], TOKENIZER, tmp_path / "cache")
                assert data.tokens.tolist() == [*text.encode(), TOKENIZER.eos_id]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=build, args=(text,)) for text in ("first", "the second", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    TokenDataset.open(tmp_path / "cache", TOKENIZER)


@pytest.mark.parametrize("old", [False, True])
def test_kill_during_build_leaves_no_half_cache(tmp_path, old: bool) -> None:
    folder = tmp_path / "cache"
    if old:
        TokenDataset.build(DOCUMENTS, TOKENIZER, folder)
    script = textwrap.dedent("""
        import sys
        from unmask.data.cache import TokenDataset
        from unmask.data.tokenizers import Tokenizer
        def documents():
            for i in range(10**9):
                if i == 100:
                    print("building", flush=True)
                yield "some text " * 100
        TokenDataset.build(documents(), Tokenizer.bytes(), sys.argv[1])
    """)
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert any(p.name.startswith(".cache.building.") for p in tmp_path.iterdir())
    if old:
        assert TokenDataset.open(folder, TOKENIZER).tokens.tolist() == STREAM
    else:
        assert not folder.exists()
        with pytest.raises(UserError, match="not a token cache"):
            TokenDataset.open(folder)
    assert TokenDataset.build(["again"], TOKENIZER, folder).num_characters == 5


# -- order -----------------------------------------------------------------------------------------------------


def test_epoch_order_is_a_permutation_fixed_by_seed_and_epoch() -> None:
    torch.manual_seed(1)
    first = epoch_order(50, 3, 4)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    np.random.seed(5)
    assert torch.equal(first, epoch_order(50, 3, 4))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    assert first.sort().values.tolist() == list(range(50))
    orders = {tuple(epoch_order(50, s, e).tolist()) for s in range(4) for e in range(4)}
    assert len(orders) == 16
    assert epoch_order(0, 0, 0).tolist() == []
    with pytest.raises(ValueError, match="seed=-1"):
        epoch_order(5, -1, 0)


def test_epoch_order_is_uniform() -> None:
    counts = torch.zeros(3, 3)
    for epoch in range(3000):
        counts[torch.arange(3), epoch_order(3, 0, epoch)] += 1
    assert ((counts - 1000).abs() < 5 * 26).all()
