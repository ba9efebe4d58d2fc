"""`unmask infill`: fill the gaps of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from unmask.cli.console import check_writable, load_model, model_name, parse, schema_text
from unmask.select import OrderName

EXAMPLES = (
    'unmask infill "The [[8]] sat on [[1-20]]."',
    'unmask infill "To be, or [[6]] the question." --num-samples 3 --seed 1',
    'unmask infill "Speak, [[4-12]] love." --model runs/mine --show',
)


@dataclass(frozen=True, kw_only=True)
class Infill:
    """Fill the gaps of a text; the model sees what stands before and after each.

    [[8]] is a gap of 8 tokens, [[1-20]] one of 1 to 20 tokens (the seed draws how many), and \\[[ is a literal [[.
    The given text stays as it is.
    """

    pattern: tyro.conf.Positional[str]
    """The text with its gaps; quote it for the shell."""
    model: str | None = None
    """Checkpoint folder or Hugging Face hub id; the model that ships with unmask by default."""
    num_samples: int = 1
    """How many fillings. Filling i depends on the seed and on i only."""
    num_steps: int | None = None
    """Denoising steps; by default one per token to fill, at most 64."""
    temperature: float = 1.0
    """1 samples the model's law, below 1 sharpens it, 0 takes the most probable tokens."""
    top_k: int | None = None
    """Draw among the k most probable tokens only."""
    top_p: float | None = None
    """Draw among the fewest tokens whose probabilities sum to this."""
    order: OrderName | None = None
    """Reveal tokens in this order instead of at random, each on its own."""
    threshold: float | None = None
    """Reveal all tokens whose probability is at least this, and one at least: as few steps as the text allows."""
    remask: float | None = None
    """Take back each decoded token with at most this probability in a step, to decide it anew (with more steps)."""
    regex: str | None = None
    """The filled text has to match this regular expression."""
    json_schema: str | None = None
    """The filled text has to be JSON that fits this schema: the schema itself, or a file that holds it."""
    seed: int = 0
    """Of every random draw."""
    show: bool = False
    """Play the denoising live in the terminal (plain lines where the output is not one)."""
    html: str | None = None
    """Also write a web page that plays the denoising."""
    out: str | None = None
    """Also write the filled texts to this file."""
    json: bool = False
    """Print one JSON document on standard output instead of text."""


def main(argv: Sequence[str]) -> None:
    """Parse, run, print."""
    options = parse(Infill, argv, command="infill", examples=EXAMPLES)
    check_writable(options.html)
    check_writable(options.out)
    from unmask.cli.filling import Filling, run
    from unmask.data.infill import parse_pattern
    from unmask.sampling import SamplingConfig

    config = SamplingConfig(
        num_steps=options.num_steps,
        seed=options.seed,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        order=options.order,
        threshold=options.threshold,
        remask=options.remask,
        regex=options.regex,
        json_schema=schema_text(options.json_schema),
    )
    parse_pattern(options.pattern)  # a slip is told before a model is loaded
    model = load_model(options.model)
    canvas = model.infill_canvas(options.pattern, num_samples=options.num_samples, seed=options.seed)
    filling = Filling(
        model=model,
        model_name=model_name(options.model),
        canvas=canvas,
        config=config,
        may_end=False,
        show=options.show,
        html=options.html,
        out=options.out,
        json=options.json,
    )
    run(filling, {"pattern": options.pattern})
