"""The `unmask` command: finds the subcommand's module, and turns expected failures into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

# Each module has `main(argv) -> None`. Nothing is imported before it is needed: `unmask --help` must be quick.
COMMANDS = {
    "train": "train a model on your own text",
    "generate": "write new text, from nothing or from a prompt",
    "infill": 'fill the gaps of a text, such as "The [[8]] sat on [[1-20]]."',
    "score": "bits per token and per character of a text",
    "info": "what a checkpoint is",
}

# Which extra of this package brings an optional package.
EXTRAS = {
    "tyro": "cli",
    "rich": "cli",
    "accelerate": "train",
    "tensorboard": "train",
    "matplotlib": "train",
    "datasets": "data",
}

HELP = """usage: unmask COMMAND [options]

Masked diffusion models on text: train, generate, infill, score.

commands:
{commands}

examples:
  unmask generate --show
  unmask generate --prompt "ROMEO." --num-samples 3 --seed 1
  unmask train --data my.txt --out runs/mine
  unmask infill "The [[8]] sat on [[1-20]]." --model runs/mine
  unmask score my.txt --model runs/mine

`unmask COMMAND --help` tells all options; `unmask --version` the version. Results go to standard output, progress and
errors to standard error. Exit codes: 0 done, 2 bad input, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; None: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has gone, as in `unmask ... | head`: nothing more to say, not even at exit
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 141
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(f"the package {error.name} is missing; pip install 'unmask[{EXTRAS[error.name]}]'", 2)
    except OSError as error:
        return _fail(_describe(error), 2)
    except ValueError as error:
        from unmask.errors import UserError

        if not isinstance(error, UserError):
            raise
        return _fail(str(error), 2)


def _dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in COMMANDS:
        try:
            importlib.import_module(f"unmask.cli.{command}").main(arguments[1:])
        except SystemExit as stop:  # how the parser ends: 0 after --help, 2 after a message of its own
            return stop.code if isinstance(stop.code, int) else 0
        return 0
    if command in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {name:9} {what}" for name, what in COMMANDS.items())))
        return 0
    if command in ("-V", "--version"):
        from unmask import __version__

        print(f"unmask {__version__}")
        return 0
    return _fail(f"no command {command!r}; the commands are {', '.join(COMMANDS)} (see unmask --help)", 2)


def _describe(error: OSError) -> str:
    if error.strerror is None:
        return str(error) or type(error).__name__
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror}{where}"


def _fail(message: str, code: int) -> int:
    print(f"unmask: {' '.join(message.split())}", file=sys.stderr)
    return code
