"""`unmask infill`: fill the gaps of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from unmask.cli.console import parse
from unmask.cli.filling_options import FillingOptions

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
    filling: Annotated[FillingOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=FillingOptions)


def main(argv: Sequence[str]) -> None:
    """Parse, run, print."""
    options = parse(Infill, argv, command="infill", examples=EXAMPLES)
    from unmask.data.infill import parse_pattern

    parse_pattern(options.pattern)  # a slip is told before a model is loaded
    filling = options.filling
    filling.run(
        lambda model: model.infill_canvas(options.pattern, num_samples=filling.num_samples, seed=filling.seed),
        {"pattern": options.pattern},
        may_end=False,
    )
