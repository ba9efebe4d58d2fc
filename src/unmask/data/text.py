"""Text documents from files, folders and Hugging Face data sets.

A *document* is one string. In text files form feeds separate documents (a file without any is one document); in
JSON-lines files each line is one. Line ends become ``\\n``, a byte-order mark is dropped, and so are the line ends
around a form feed and documents that hold white space only.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np

from unmask.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")
JSON_LINES_SUFFIXES = (".jsonl", ".jsonl.gz")
_DATA_SET_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")
_BOUNDARIES = ("\n\n", "\n", " ")


@overload
def load_documents(
    source: str | Path,
    *,
    text_field: str = "text",
    split: str = "train",
    streaming: Literal[False] = False,
    limit: int | None = None,
) -> list[str]: ...
@overload
def load_documents(
    source: str | Path,
    *,
    text_field: str = "text",
    split: str = "train",
    streaming: Literal[True],
    limit: int | None = None,
) -> Iterator[str]: ...
def load_documents(
    source: str | Path,
    *,
    text_field: str = "text",
    split: str = "train",
    streaming: bool = False,
    limit: int | None = None,
) -> list[str] | Iterator[str]:
    """The documents of `source`, as a list or, with `streaming`, one at a time.

    Args:
        source: a file (.txt, .md, .jsonl, each also .gz), a folder of such files (recursive, sorted by path,
            hidden ones skipped), a folder written by ``datasets.save_to_disk``, or the name of a data set on the
            Hugging Face hub, ``owner/name`` or ``owner/name:config``.
        text_field: the field that holds the text, for JSON lines and data sets.
        split: the split of a data set.
        streaming: return an iterator that reads as it goes; errors then come while iterating.
        limit: take only the first `limit` documents.

    Raises:
        UserError: nothing at that path, no text in it, binary or non-UTF-8 content (byte offset), a JSON line that does
            not parse or lacks the field (line number), a data set that cannot be loaded.
    """
    if limit is not None and limit < 1:
        raise UserError(f"loading text: limit={limit}, wanted at least 1")
    documents = _not_empty(source, _documents(source, text_field, split, streaming))
    chosen = itertools.islice(documents, limit)
    return chosen if streaming else list(chosen)


def split_documents(documents: Sequence[str], held_out: float = 0.05, seed: int = 0) -> tuple[list[str], list[str]]:
    """(training, held-out) documents with about the fraction `held_out` of the characters held out.

    Whole documents are drawn in an order fixed by `seed` until the share is reached, passing over any that would
    overshoot it by half; if every document is too large, the shortest is taken. A single document is cut near its end,
    at the last paragraph break before the mark (else line end, else space, else the mark itself; looked for within one
    held-out share before the mark): no character is lost. Both lists keep the order of `documents`.

    Raises:
        UserError: no document, a single one of less than 2 characters, or `held_out` outside [0, 1).
    """
    if not 0 <= held_out < 1:
        raise UserError(f"splitting documents: held_out={held_out}, wanted a fraction in [0, 1)")
    if not documents:
        raise UserError("splitting documents: there are none; give at least one")
    if held_out == 0:
        return list(documents), []
    if len(documents) == 1:
        return _cut(documents[0], held_out)
    chosen = _draw([len(document) for document in documents], held_out, seed)
    return (
        [document for i, document in enumerate(documents) if i not in chosen],
        [document for i, document in enumerate(documents) if i in chosen],
    )


def _draw(lengths: list[int], held_out: float, seed: int) -> set[int]:
    wanted, taken = held_out * sum(lengths), 0
    chosen: set[int] = set()
    for i in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        if taken >= wanted:
            break
        if taken + lengths[i] <= 1.5 * wanted and len(chosen) < len(lengths) - 1:
            chosen.add(i)
            taken += lengths[i]
    return chosen or {min(range(len(lengths)), key=lengths.__getitem__)}


def _cut(document: str, held_out: float) -> tuple[list[str], list[str]]:
    size = len(document)
    if size < 2:
        raise UserError(f"splitting documents: a single document of {size} characters cannot be split; give more text")
    mark = min(size - 1, max(1, round(size * (1 - held_out))))
    lowest = max(1, round(size * (1 - 2 * held_out)))
    for boundary in _BOUNDARIES:
        found = document.rfind(boundary, lowest, mark)
        if found >= 0:
            mark = found + len(boundary)
            break
    return [document[:mark]], [document[mark:]]


def _not_empty(source: str | Path, documents: Iterator[str]) -> Iterator[str]:
    empty = True
    for document in documents:
        if document and not document.isspace():
            empty = False
            yield document
    if empty:
        raise UserError(f"loading text: {source} holds no text; give a source with at least one non-blank document")


def _documents(source: str | Path, text_field: str, split: str, streaming: bool) -> Iterator[str]:
    path = Path(source).expanduser()
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            yield from _data_set(str(path), text_field, split, streaming, local=True)
        else:
            for file in _files(path):
                yield from _file(file, text_field)
    elif path.exists():
        yield from _file(path, text_field)
    elif _is_data_set_name(str(source)):
        yield from _data_set(str(source), text_field, split, streaming, local=False)
    else:
        raise UserError(
            f"loading text: no file or folder {source}; check the path (a data set on the hub is owner/name)"
        )


def _is_data_set_name(source: str) -> bool:
    """Whether a path that does not exist may be meant as ``owner/name`` on the hub, and not as a slip in a path."""
    known = TEXT_SUFFIXES + JSON_LINES_SUFFIXES
    owner = source.partition("/")[0]
    return _DATA_SET_NAME.fullmatch(source) is not None and not source.endswith(known) and not Path(owner).exists()


def _files(folder: Path) -> list[Path]:
    files = [p for p in folder.rglob("*") if p.is_file() and not _hidden(p.relative_to(folder))]
    known = sorted(p for p in files if p.name.endswith(TEXT_SUFFIXES + JSON_LINES_SUFFIXES))
    if not known:
        met = ", ".join(sorted({p.suffix or p.name for p in files})) or "nothing"
        wanted = ", ".join(TEXT_SUFFIXES + JSON_LINES_SUFFIXES)
        raise UserError(f"loading text: folder {folder} holds no text file (met {met}; wanted {wanted})")
    return known


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _file(path: Path, text_field: str) -> Iterator[str]:
    if path.name.endswith(JSON_LINES_SUFFIXES):
        yield from _json_lines(path, text_field)
    elif path.name.endswith(TEXT_SUFFIXES) or not path.suffix:
        text = _text(b"".join(_lines(path)), path)
        yield from (part.strip("\n") for part in text.split("\f")) if "\f" in text else (text,)
    else:
        wanted = ", ".join(TEXT_SUFFIXES + JSON_LINES_SUFFIXES)
        raise UserError(f"loading text: {path} has the suffix {path.suffix!r}; wanted one of {wanted}")


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"loading text: {path} is not a whole gzip file ({error}); make it again") from error


def _text(data: bytes, path: Path, offset: int = 0) -> str:
    """Decoded `data`, which begins `offset` bytes into the (decompressed) file."""
    zero = data.find(b"\0")
    if zero >= 0:
        raise UserError(
            f"loading text: {path} is binary or UTF-16 (zero byte at offset {offset + zero}); wanted UTF-8 text"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"loading text: {path} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {offset + error.start}); "
            "convert it, for example with `iconv -f latin1 -t utf-8`"
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _json_lines(path: Path, text_field: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(_lines(path), start=1):
        text = _text(line, path, offset)
        offset += len(line)
        if text.isspace():
            continue
        try:
            record = json.loads(text)
        except ValueError as error:
            raise UserError(f"loading text: {path} line {number} is not valid JSON ({error})") from error
        yield _field(record, text_field, f"{path} line {number}")


def _field(record: object, text_field: str, place: str) -> str:
    if not isinstance(record, dict):
        raise UserError(
            f"loading text: {place} is a JSON {type(record).__name__}; wanted an object with {text_field!r}"
        )
    text = record.get(text_field)
    if not isinstance(text, str):
        met = ", ".join(map(repr, record)) or "none"
        state = f"is {type(text).__name__}" if text_field in record else "is missing"
        raise UserError(
            f"loading text: {place}: field {text_field!r} {state}, wanted a string; the fields are {met}; "
            "name the right one with text_field"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _data_set(source: str, text_field: str, split: str, streaming: bool, *, local: bool) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"loading text: {source} is not a file here, and data sets need `pip install unmask[data]`"
        ) from error
    try:
        if local:
            data = datasets.load_from_disk(source)
        else:
            name, _, config = source.partition(":")
            data = datasets.load_dataset(name, config or None, split=split, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        what = "the saved data set" if local else "there is no such file or folder, and the data set of that name"
        raise UserError(f"loading text: {source}: {what} could not be loaded: {reason}") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(f"loading text: {source} has no split {split!r}; the splits are {', '.join(data)}")
        data = data[split]
    for number, record in enumerate(data):
        yield _field(record, text_field, f"{source} record {number}")
