"""What the commands share: parsing, progress, JSON and early checks. Nothing heavy is imported here."""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unmask.errors import UserError

if TYPE_CHECKING:
    from unmask.text import TextModel

T = TypeVar("T")


def parse(options: type[T], argv: Sequence[str], *, command: str, examples: Sequence[str]) -> T:
    """The options dataclass filled from the arguments.

    Raises:
        SystemExit: 0 after ``--help``, 2 after telling what does not parse.
    """
    import tyro

    lines = "\n".join(f"  {example}" for example in examples)
    description = f"{inspect.getdoc(options)}\n\nExamples:\n{lines}"
    return tyro.cli(
        options,
        prog=f"unmask {command}",
        args=list(argv),
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def load_model(source: str | None) -> TextModel:
    """The model named on the command line; None: the shipped one."""
    from unmask.text import TextModel

    return TextModel.from_pretrained(source)


def model_name(source: str | None) -> str:
    """How to call the model in a report."""
    return source if source is not None else "shakespeare-masked (shipped)"


def print_json(value: Any) -> None:
    """The one JSON document of a ``--json`` run, on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def schema_text(schema: str | None) -> str | None:
    """A JSON schema as given, or out of the file that it names.

    Raises:
        UserError: the file cannot be read.
    """
    if schema is None or schema.lstrip().startswith("{"):
        return schema
    try:
        return Path(schema).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"reading the schema {schema}: {error}; name a file, or give the schema itself") from error


def check_writable(path: str | Path | None) -> None:
    """Find out before the work begins whether a file can be written there.

    Raises:
        UserError: it cannot.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise UserError(f"writing {path}: it is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"writing {path}: {error.strerror}; name a place that can be written") from error


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, told (done, in all); work of less than a second shows none."""
    from tqdm import tqdm

    with tqdm(desc=what, delay=1.0, leave=False, file=sys.stderr, dynamic_ncols=True) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update
