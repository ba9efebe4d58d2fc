"""`unmask generate`: new text, from nothing or from a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unmask.cli.console import check_writable, load_model, model_name, parse, schema_text
from unmask.select import OrderName

EXAMPLES = (
    "unmask generate",
    "unmask generate --show",
    'unmask generate --prompt "ROMEO." --num-samples 3 --seed 1',
    "unmask generate --model runs/mine --length 100 --num-steps 100 --temperature 0.9 --json",
    "unmask generate --html denoising.html",
    r'unmask generate --length 40 --regex "[A-Z]+: [a-z ,]+[.!]"',
)


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Write new text with a masked diffusion model, from nothing or from a prompt.

    The positions are filled in random order over --num-steps steps: more steps give better text and take longer.
    """

    model: str | None = None
    """Checkpoint folder or Hugging Face hub id; the model that ships with unmask by default."""
    prompt: str = ""
    """Text that every sample begins with."""
    num_samples: int = 1
    """How many samples. Sample i depends on the seed and on i only."""
    length: int | None = None
    """New tokens per sample; by default to the end of the model's context, at most 256."""
    num_steps: int | None = None
    """Denoising steps; by default one per new token, at most 64."""
    temperature: float = 1.0
    """1 samples the model's law, below 1 sharpens it, 0 takes the most probable tokens."""
    top_k: int | None = None
    """Draw among the k most probable tokens only."""
    top_p: float | None = None
    """Draw among the fewest tokens whose probabilities sum to this."""
    block_size: int | None = None
    """Fill blocks of this many tokens from left to right instead of all positions at once."""
    order: OrderName | None = None
    """Reveal tokens in this order instead of at random, each on its own."""
    threshold: float | None = None
    """Reveal all tokens whose probability is at least this, and one at least: as few steps as the text allows."""
    remask: float | None = None
    """Take back each decoded token with at most this probability in a step, to decide it anew (with more steps)."""
    regex: str | None = None
    """The new text has to match this regular expression."""
    json_schema: str | None = None
    """The new text has to be JSON that fits this schema: the schema itself, or a file that holds it."""
    seed: int = 0
    """Of every random draw."""
    show: bool = False
    """Play the denoising live in the terminal (plain lines where the output is not one)."""
    html: str | None = None
    """Also write a web page that plays the denoising."""
    out: str | None = None
    """Also write the samples to this text file."""
    json: bool = False
    """Print one JSON document on standard output instead of text."""


def main(argv: Sequence[str]) -> None:
    """Parse, run, print."""
    options = parse(Generate, argv, command="generate", examples=EXAMPLES)
    check_writable(options.html)
    check_writable(options.out)
    from unmask.cli.filling import Filling, run
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
        block_size=options.block_size,
    )
    model = load_model(options.model)
    canvas = model.canvas(options.prompt, num_samples=options.num_samples, length=options.length)
    filling = Filling(
        model=model,
        model_name=model_name(options.model),
        canvas=canvas,
        config=config,
        may_end=True,
        show=options.show,
        html=options.html,
        out=options.out,
        json=options.json,
    )
    run(filling, {"prompt": options.prompt})
