"""Tokenized documents in a memory-mapped folder, and fixed-length training windows over them.

The documents are packed into one stream, each followed by the end-of-text token. A folder holds ``tokens.bin`` (uint16,
or uint32 from a vocabulary of 65,536 up), ``offsets.npy`` (where each document starts, and the end) and ``meta.json``.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmask.data.tokenizers import Tokenizer
from unmask.errors import UserError

FORMAT_VERSION = 1
_META, _TOKENS, _OFFSETS = "meta.json", "tokens.bin", "offsets.npy"
_MAX_PIECE = 1 << 20  # characters encoded at once: bounds the memory of the encoder on a huge document


@dataclass(frozen=True, kw_only=True)
class TokenDataset:
    """Documents as token ids on disk; make one with `build` or `open`.

    **Bits per character.** The likelihood of the documents is the product over *all* tokens, end-of-text tokens
    included; the characters are those of the texts alone. So with N nats in total over the stream,
    ``N / (log(2) * num_characters)`` is an exact, tokenizer-independent figure: the cost of saying where a document
    ends counts in the numerator, and adds nothing to the denominator.
    """

    folder: Path
    """Where the files are."""
    tokens: np.ndarray
    """(num_tokens,) the packed stream, memory-mapped and read-only."""
    offsets: np.ndarray
    """(num_documents + 1,) int64: document i is ``tokens[offsets[i] : offsets[i + 1]]``, its end-of-text included."""
    num_characters: int
    """Unicode characters of all documents, before tokenization."""
    pad_id: int
    """Id that fills the last window."""
    tokenizer_fingerprint: str
    """`Tokenizer.fingerprint` of the tokenizer that wrote the ids."""

    @property
    def num_tokens(self) -> int:
        """Tokens in all, one end-of-text token per document included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Documents in all."""
        return len(self.offsets) - 1

    @classmethod
    def build(cls, documents: Iterable[str], tokenizer: Tokenizer, folder: str | Path) -> TokenDataset:
        """Tokenize `documents` (consumed once) into `folder` and open the result.

        The files are written to a temporary folder beside `folder` and moved in one step: a kill leaves what was
        there before, the whole new data set or (while an old one is swapped out) none, but never a part of one. Of
        two builders at once the later one wins. A kill can leave a hidden ``.<name>.building.*`` folder, which may
        be deleted. Documents of more than a million characters are encoded in pieces that end at a line end where
        possible.

        Raises:
            UserError: no document, or `folder` holds something other than a token cache.
        """
        folder = Path(folder)
        _check_replaceable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.building."))
        try:
            os.chmod(temporary, 0o755)
            _write(documents, tokenizer, temporary)
            # Mapped before the move: the map stays good even if another builder replaces the folder at once.
            dataset = cls.open(temporary, tokenizer)
            _move(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return replace(dataset, folder=folder)

    @classmethod
    def open(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> TokenDataset:
        """Map the data set in `folder` without reading its tokens.

        Args:
            folder: what `build` wrote.
            tokenizer: if given, must be the one that the ids were written with.

        Raises:
            UserError: no such folder, foreign or truncated files, or another tokenizer.
        """
        folder = Path(folder)
        meta = _read_meta(folder)
        try:
            tokens = np.memmap(folder / _TOKENS, dtype=meta["dtype"], mode="r")
            offsets = np.load(folder / _OFFSETS, mmap_mode="r", allow_pickle=False)
            count, documents = int(meta["num_tokens"]), int(meta["num_documents"])
            whole = len(tokens) == count and len(offsets) == documents + 1 and int(offsets[-1]) == count
            fields = {name: meta[name] for name in ("num_characters", "pad_id", "tokenizer_fingerprint")}
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"opening the token cache {folder}: damaged ({error}); delete it and build it again"
            ) from error
        if not whole:
            raise UserError(
                f"opening the token cache {folder}: truncated, {len(tokens)} tokens where {count} were written; "
                "delete it and build it again"
            )
        found = fields["tokenizer_fingerprint"]
        if tokenizer is not None and found != tokenizer.fingerprint():
            raise UserError(
                f"opening the token cache {folder}: written with tokenizer {found}, met {tokenizer.fingerprint()}; "
                "use the tokenizer of the cache, or delete it and build it again"
            )
        return cls(folder=folder, tokens=tokens, offsets=offsets, **fields)

    def document(self, index: int) -> Tensor:
        """Ids of document `index`, (n,) int64, its end-of-text token included."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return torch.from_numpy(self.tokens[start:end].astype(np.int64))

    def windows(self, length: int, *, allow_short: bool = False) -> WindowDataset:
        """Consecutive windows of `length` tokens over the stream; the last one is padded, never dropped.

        Args:
            length: tokens a window.
            allow_short: accept fewer tokens than one window (for held-out text); one padded window then.

        Raises:
            UserError: `length` < 1, or fewer tokens than one window.
        """
        if length < 1:
            raise UserError(f"cutting windows: length={length}, wanted at least 1")
        if self.num_tokens < length and not allow_short:
            raise UserError(
                f"cutting windows: the text has {self.num_tokens} tokens ({self.num_characters} characters), "
                f"fewer than one window of {length}; give more text or a length of at most {self.num_tokens}"
            )
        return WindowDataset(dataset=self, length=length)


@dataclass(frozen=True, kw_only=True)
class WindowDataset:
    """Window i is ``tokens[i * length : (i + 1) * length]`` of the packed stream; see `TokenDataset.windows`."""

    dataset: TokenDataset
    """The stream."""
    length: int
    """Tokens a window."""

    def __len__(self) -> int:
        return -(-self.dataset.num_tokens // self.length)

    @property
    def num_tokens(self) -> int:
        """Real tokens of all windows: those of the stream."""
        return self.dataset.num_tokens

    @property
    def num_characters(self) -> int:
        """Characters of all windows, for the conversion to bits per character (see `TokenDataset`)."""
        return self.dataset.num_characters

    def batch(self, indices: Tensor) -> dict[str, Tensor | None]:
        """The windows `indices` (b,), ready for a loss.

        Returns:
            ``tokens`` (b, l) int64; ``attention_mask`` (b, l) bool, True = real token, or None when nothing is padded;
            ``document_ids`` (b, l) int64, counted from 0 in each row (padding repeats the last), or None when every row
            lies within one document.

        Raises:
            IndexError: an index outside ``0 .. len - 1``.
        """
        rows = indices.detach().cpu().numpy().astype(np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"windows {rows.min()}..{rows.max()} asked for, there are 0..{len(self) - 1}")
        positions = rows[:, None] * self.length + np.arange(self.length)
        real = positions < self.dataset.num_tokens
        positions = np.minimum(positions, self.dataset.num_tokens - 1)
        tokens = np.where(real, self.dataset.tokens[positions], self.dataset.pad_id).astype(np.int64)
        documents = np.searchsorted(self.dataset.offsets, positions, side="right") - 1
        documents -= documents[:, :1]
        return {
            "tokens": torch.from_numpy(tokens),
            "attention_mask": None if real.all() else torch.from_numpy(real),
            "document_ids": torch.from_numpy(documents) if documents.any() else None,
        }


def epoch_order(num: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``0 .. num - 1``, (num,) int64: a function of (num, seed, epoch) and of nothing else.

    It neither reads nor changes the global random states of torch and numpy.

    Raises:
        ValueError: a negative argument.
    """
    if min(num, seed, epoch) < 0:
        raise ValueError(f"ordering an epoch: num={num}, seed={seed}, epoch={epoch}; wanted none negative")
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return torch.from_numpy(generator.permutation(num).astype(np.int64))


def _write(documents: Iterable[str], tokenizer: Tokenizer, folder: Path) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size < 65536 else np.uint32)
    offsets, characters = [0], 0
    with (folder / _TOKENS).open("wb") as file:
        for document in documents:
            count = 1
            for piece in _pieces(document):
                ids = tokenizer.encode(piece)
                file.write(np.asarray(ids, dtype=dtype).tobytes())
                count += len(ids)
            file.write(np.asarray([tokenizer.eos_id], dtype=dtype).tobytes())
            offsets.append(offsets[-1] + count)
            characters += len(document)
        _sync(file)
    if len(offsets) == 1:
        raise UserError("building a token cache: there is no document; give at least one")
    with (folder / _OFFSETS).open("wb") as file:
        np.save(file, np.asarray(offsets, dtype=np.int64), allow_pickle=False)
        _sync(file)
    meta = {
        "format": "unmask-tokens",
        "format_version": FORMAT_VERSION,
        "dtype": dtype.name,
        "num_documents": len(offsets) - 1,
        "num_tokens": offsets[-1],
        "num_characters": characters,
        "pad_id": tokenizer.pad_id,
        "tokenizer_fingerprint": tokenizer.fingerprint(),
    }
    with (folder / _META).open("wb") as file:
        file.write(json.dumps(meta, indent=2).encode())
        _sync(file)


def _pieces(document: str) -> Iterator[str]:
    start = 0
    while len(document) - start > _MAX_PIECE:
        newline = document.rfind("\n", start, start + _MAX_PIECE)
        end = newline + 1 if newline >= 0 else start + _MAX_PIECE
        yield document[start:end]
        start = end
    yield document[start:]


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _check_replaceable(folder: Path) -> None:
    """Refuse to build over anything but a token cache; another builder may move the folder away at any moment."""
    operation = "building a token cache in"
    try:
        names = os.listdir(folder)
        data = (folder / _META).read_bytes() if _META in names else b""
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UserError(f"{operation} {folder}: it is a file; name a new folder") from None
    if names and _META not in names:
        raise UserError(f"{operation} {folder}: it holds other files and is not a token cache; name a new folder")
    if names:
        _parse_meta(data, folder, operation)


def _move(temporary: Path, folder: Path) -> None:
    """Put `temporary` in the place of `folder`; whoever finds it taken moves the other aside and tries again."""
    while True:
        try:
            os.replace(temporary, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
        try:
            os.replace(folder, old)
        except FileNotFoundError:
            continue  # another builder moved it first
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _read_meta(folder: Path) -> dict[str, Any]:
    operation = "opening the token cache"
    try:
        data = (folder / _META).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{operation} {folder}: no {_META} there, so it is not a token cache; build it first") from None
    return _parse_meta(data, folder, operation)


def _parse_meta(data: bytes, folder: Path, operation: str) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except ValueError as error:
        raise UserError(f"{operation} {folder}: {_META} is damaged ({error}); delete it and build it again") from error
    if not isinstance(meta, dict) or meta.get("format") != "unmask-tokens":
        raise UserError(f"{operation} {folder}: its {_META} is not that of a token cache; name another folder")
    if meta.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{operation} {folder}: format version {meta.get('format_version')}, this version reads {FORMAT_VERSION}; "
            "delete it and build it again"
        )
    return meta
