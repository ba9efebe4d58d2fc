"""`unmask train`: a model of one's own text."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from unmask.cli.console import parse, print_json, progress
from unmask.errors import UserError

if TYPE_CHECKING:
    from unmask.recipes.text import TextRecipe, TextRun

EXAMPLES = (
    "unmask train --data my.txt --out runs/mine",
    "unmask train --data my.txt --out runs/mine --minutes 30 --size small",
    "unmask train --data corpus.jsonl --text-field body --out runs/corpus --steps 20000 --tokenizer bpe",
    "unmask train --data my.txt --out runs/twin --causal",
    "unmask train --out runs/mine --resume",
    "accelerate launch -m unmask train --data big/ --out runs/big --steps 100000 --size base",
)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a masked diffusion model (or its autoregressive twin) on your own text.

    Part of the text is held out by document; the report gives bits per character on it beside what n-gram models
    reach. The folder is a checkpoint that generate, infill, score and info read, at any time. Ctrl-C stops after the
    step at hand with a checkpoint; --resume goes on. What is left out is chosen from the size of the data.
    """

    out: str
    """Folder of the run; an existing run is refused unless --resume or --overwrite is given."""
    data: str | None = None
    """Text (.txt, .md) or JSON-lines file, a folder of them, a Hugging Face data set, or "shakespeare" for the bundled
    plays; needed but with --resume."""
    resume: bool = False
    """Go on with the run in the folder, with its settings."""
    overwrite: bool = False
    """Replace the run in the folder."""
    steps: int | None = None
    """Optimizer steps."""
    minutes: float | None = None
    """About how long to train, instead of --steps; 5 if neither is given."""
    size: Literal["tiny", "small", "base"] | None = None
    """Network of 0.8, 9.6 or 85 million parameters beside the embedding; tiny by default on a CPU."""
    context: int = 128
    """Tokens per training window: the longest text that the model can write at once."""
    tokenizer: str | None = None
    """bpe, bytes, characters, or the path of a tokenizer.json; by default bpe, for short texts characters."""
    vocab_size: int | None = None
    """Of a bpe tokenizer."""
    causal: bool = False
    """Train the autoregressive twin: the same network, read from left to right."""
    batch_size: int = 32
    """Windows per step, over all processes."""
    learning_rate: float | None = None
    """Peak learning rate; by default one that suits the size."""
    held_out: float = 0.05
    """Share of the text that is kept apart for the figures."""
    text_field: str = "text"
    """Field that holds the text, for JSON lines and data sets."""
    limit: int | None = None
    """Use the first documents only."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16 on accelerators that are faster with it."""
    compile: bool = False
    """Use torch.compile."""
    seed: int = 0
    """Of the weights, the data order and all noise."""
    json: bool = False
    """Print one JSON document on standard output instead of text."""


def main(argv: Sequence[str]) -> None:
    """Parse, train, report."""
    options = parse(Train, argv, command="train", examples=EXAMPLES)
    from unmask.recipes.text import train_text

    recipe = _recipe(options)
    run = train_text(recipe, resume=options.resume, overwrite=options.overwrite)
    if run.model is None:  # not the main process
        return
    if run.result.interrupted:  # the trainer has told how far it came and how to go on
        raise SystemExit(130)
    _report(run, options.json)


def _recipe(options: Train) -> TextRecipe:
    """The options as a recipe; with --resume, what was left at its default comes from the run's folder."""
    from unmask.recipes.text import TextRecipe, stored_recipe

    fields = {field.name: field.default for field in dataclasses.fields(TextRecipe)}
    given: dict[str, Any] = {name: getattr(options, name) for name in fields}
    if options.resume:
        stored = stored_recipe(options.out)
        kept = {name: value for name, value in stored.items() if given[name] in (None, fields[name])}
        given |= kept
        if options.steps is not None or options.minutes is not None:
            given |= {"steps": options.steps, "minutes": options.minutes}
    if given["data"] is None:
        raise UserError("train: --data is missing: name the text to train on (only a --resume of a run knows its own)")
    return TextRecipe(**given)


def _report(run: TextRun, json: bool) -> None:
    from unmask.recipes.report import as_json, report, summary

    with progress("held-out text") as update:
        outcome = report(run, on_progress=update)
    if json:
        print_json(as_json(run, outcome))
        return
    print(summary(run, outcome))
    out = shlex.quote(run.recipe.out)
    print("\nnext:")
    print(f"  unmask generate --model {out} --show")
    if outcome.infill is not None:
        print(f"  unmask infill {shlex.quote(outcome.infill[0])} --model {out}")
    print(f"  unmask score FILE --model {out}")
    print(f"  unmask info {out}")
    sys.stdout.flush()
