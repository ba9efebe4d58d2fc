"""`unmask generate`: new text, from nothing or from a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from unmask.cli.console import parse
from unmask.cli.filling_options import FillingOptions

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

    prompt: str = ""
    """Text that every sample begins with."""
    length: int | None = None
    """New tokens per sample; by default to the end of the model's context, at most 256."""
    block_size: int | None = None
    """Fill blocks of this many tokens from left to right instead of all positions at once."""
    filling: Annotated[FillingOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=FillingOptions)


def main(argv: Sequence[str]) -> None:
    """Parse, run, print."""
    options = parse(Generate, argv, command="generate", examples=EXAMPLES)
    filling = options.filling
    filling.run(
        lambda model: model.canvas(options.prompt, num_samples=filling.num_samples, length=options.length),
        {"prompt": options.prompt},
        may_end=True,
        block_size=options.block_size,
    )
