"""Samples of one sampler at one number of steps and one temperature, and what they are worth."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.frontier.methods import Make
from unmask import Denoiser, Rng, TextModel, sample
from unmask.data.shakespeare import load_shakespeare_split
from unmask.law import Law, SiteLaw
from unmask.metrics.judge import ShippedJudge
from unmask.metrics.quality import sample_quality
from unmask.ops import temper
from unmask.sampling import Without

NUM_SAMPLES = 64
WINDOW = 32  # tokens whose features make one point of MAUVE


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell.

    Args:
        method, temperature, steps: what was run.
        calls: network evaluations of a sample, on average.
        perplexity, error: under the packaged autoregressive twin, per token of its own, and the standard error.
        entropy: of the tokens within a sample, nats.
        distinct: distinct bigrams over all bigrams.
        mauve: against held-out text, from the twin's hidden states, averaged over windows of 32 tokens.
    """

    method: str
    temperature: float
    steps: int
    calls: float
    perplexity: float
    error: float
    entropy: float
    distinct: float
    mauve: float


class Asked(Denoiser):
    """The model at a temperature; counts the rows that are evaluated."""

    def __init__(self, inner: Denoiser, temperature: float) -> None:
        super().__init__()
        self.inner, self.temperature, self.rows = inner, temperature, 0

    def forward(self, xt: Any, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Law:
        self.rows += len(xt)
        law = self.inner(xt, t, **cond)
        assert isinstance(law, SiteLaw)
        return law.map(partial(temper, temperature=self.temperature))


class Scale:
    """The packaged model, its judge and held-out text of the samples' size."""

    def __init__(self) -> None:
        self.model, self.judge = TextModel.from_pretrained(), ShippedJudge()
        tokenizer = self.model.tokenizer
        ids = [i for work in load_shakespeare_split()[1] for i in tokenizer.encode(work)]
        length = self.model.context
        starts = torch.linspace(0, len(ids) - length, NUM_SAMPLES).long().tolist()
        self.real = torch.tensor([ids[i : i + length] for i in starts])
        self.real_features = self.features(self.real)

    @torch.no_grad()
    def features(self, tokens: Tensor) -> Tensor:
        """The twin's hidden states, averaged over each window, (number of windows, dim)."""
        net: Any = self.judge._denoiser.net
        hidden = net(tokens, torch.zeros(len(tokens)).double())
        return hidden.unfold(1, WINDOW, WINDOW).mean(-1).flatten(0, 1)

    def measure(self, tokens: Tensor, **told: Any) -> Point:
        """The figures of samples (n, length)."""
        import mauve

        texts = [self.model.tokenizer.decode(row) for row in tokens]
        quality = sample_quality(texts, tokenizer=self.model.tokenizer, judge=self.judge)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = mauve.compute_mauve(
                p_features=self.real_features.numpy(), q_features=self.features(tokens).numpy(), verbose=False, seed=0
            )
        assert quality.perplexity is not None
        assert quality.perplexity_se is not None
        return Point(
            perplexity=quality.perplexity,
            error=quality.perplexity_se,
            entropy=quality.unigram_entropy,
            distinct=quality.distinct[1],
            mauve=float(found.mauve),
            **told,
        )

    def run(self, name: str, make: Make, steps: int, temperature: float) -> Point:
        """Draw and measure."""
        tokenizer, process = self.model.tokenizer, self.model.checkpoint.process
        denoiser = Asked(Without(self.model.denoiser, [tokenizer.pad_id, tokenizer.eos_id]), temperature)
        drawn = sample(make(process), denoiser, (NUM_SAMPLES, self.model.context), num_steps=steps, rng=Rng(steps))
        assert isinstance(drawn, Tensor)
        return self.measure(drawn, method=name, temperature=temperature, steps=steps, calls=denoiser.rows / NUM_SAMPLES)


def cached(path: Path, make: Any) -> Point:
    """The point in the file, made and kept there if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(make())), encoding="utf-8")
    return Point(**json.loads(path.read_text(encoding="utf-8")))


def slug(words: Sequence[object]) -> str:
    """A file's name."""
    return "-".join(str(word).replace(",", "").replace(" ", "-") for word in words)
