"""The options that `generate` and `infill` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.cli.console import check_writable, load_model, model_name, schema_text
from unmask.select import OrderName

if TYPE_CHECKING:
    from unmask.data.canvas import Canvas
    from unmask.text import TextModel


@dataclass(frozen=True, kw_only=True)
class FillingOptions:
    """How the tokens are drawn, and where the texts go."""

    model: str | None = None
    """Checkpoint folder or Hugging Face hub id; the model that ships with unmask by default."""
    num_samples: int = 1
    """How many texts. Text i depends on the seed and on i only."""
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
    """The new or filled text has to match this regular expression."""
    json_schema: str | None = None
    """The new or filled text has to be JSON that fits this schema: the schema itself, or a file that holds it."""
    seed: int = 0
    """Of every random draw."""
    show: bool = False
    """Play the denoising live in the terminal (plain lines where the output is not one)."""
    html: str | None = None
    """Also write a web page that plays the denoising."""
    out: str | None = None
    """Also write the texts to this file."""
    json: bool = False
    """Print one JSON document on standard output instead of text."""

    def run(
        self,
        canvas: Callable[[TextModel], Canvas],
        request: dict[str, Any],
        *,
        may_end: bool,
        block_size: int | None = None,
    ) -> None:
        """Load the model, fill its canvas and hand the texts out.

        Args:
            canvas: what to fill.
            request: what was asked for, repeated in the JSON report.
            may_end: whether a text is cut off at its first end-of-text token.
            block_size: tokens of a block, filled from left to right.
        """
        check_writable(self.html)
        check_writable(self.out)
        from unmask.cli.filling import Filling, run
        from unmask.sampling import SamplingConfig

        config = SamplingConfig(
            num_steps=self.num_steps,
            seed=self.seed,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            order=self.order,
            threshold=self.threshold,
            remask=self.remask,
            regex=self.regex,
            json_schema=schema_text(self.json_schema),
            block_size=block_size,
        )
        model = load_model(self.model)
        filling = Filling(
            model=model,
            model_name=model_name(self.model),
            canvas=canvas(model),
            config=config,
            may_end=may_end,
            show=self.show,
            html=self.html,
            out=self.out,
            json=self.json,
        )
        run(filling, request)
