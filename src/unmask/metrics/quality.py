"""How good samples are: figures that are always reported together, because each alone can be gamed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from unmask.data.tokenizers import Tokenizer
from unmask.errors import UserError
from unmask.metrics.judge import Judge, Verdict, perplexity
from unmask.metrics.likelihood import ratio_spread

QUALITY_VERSION = 1
"""Raised whenever a definition below changes; figures of different versions are not comparable."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class SampleQuality:
    """Figures of a set of samples, definitions of version 1. They are about the sampler's law, not the model's.

    Args:
        num_samples, num_tokens, num_characters: of the samples as given; special tokens are not counted.
        empty_rate: share of samples without a token, or of white space only.
        unigram_entropy: entropy of the token frequencies *within* a sample, nats, averaged over non-empty samples. It
            grows with the samples' length, so compare equal lengths.
        pooled_entropy: entropy of the token frequencies of all samples together, nats.
        distinct: distinct n-grams over all n-grams, n = 1..4, pooled over samples (an n-gram does not cross samples).
            Falls with the number of samples, so compare equal sizes. NaN where there is no n-gram.
        repetition: share of 4-grams that occurred earlier in the same sample, pooled.
        longest_run: the most times that one token stands in a row, over all samples.
        perplexity: exp of the judge's nats per token: tokens of the judge's own tokenizer, pooled over *all* samples
            (no mean of per-sample perplexities, no batch dropped); the end of a text is not scored. None without judge.
        perplexity_se: its standard error over samples (ratio estimate, then the delta method).
        judge_bits_per_character: the same cost per character, which compares judges; None without judge.
        judge: the judge's name.
        version: of these definitions.
    """

    num_samples: int
    num_tokens: int
    num_characters: int
    empty_rate: float
    unigram_entropy: float
    pooled_entropy: float
    distinct: tuple[float, float, float, float]
    repetition: float
    longest_run: int
    perplexity: float | None
    perplexity_se: float | None
    judge_bits_per_character: float | None
    judge: str | None
    version: int = QUALITY_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; figures that do not exist are None."""
        plain = asdict(self) | {"distinct": list(self.distinct)}
        return {key: _finite(value) for key, value in plain.items()}

    def __str__(self) -> str:
        rows = {
            "samples": f"{self.num_samples} ({self.num_tokens} tokens, {self.num_characters} characters)",
            "unigram entropy": f"{self.unigram_entropy:.3f} nats within a sample, {self.pooled_entropy:.3f} pooled",
            "distinct-1..4": " ".join(f"{value:.3f}" for value in self.distinct),
            "repetition": f"{self.repetition:.3f} of 4-grams, longest run {self.longest_run}",
            "empty": f"{self.empty_rate:.3f}",
            "perplexity": "no judge"
            if self.perplexity is None
            else f"{self.perplexity:.2f} ± {self.perplexity_se:.2f} under {self.judge}",
        }
        lines = [f"{name:16} {value}" for name, value in rows.items()]
        return "\n".join([f"sample quality, version {self.version}", *lines])


def sample_quality(
    samples: Sequence[str] | Sequence[Sequence[int]],
    *,
    tokenizer: Tokenizer,
    judge: Judge | None = None,
    on_progress: Progress | None = None,
) -> SampleQuality:
    """All figures of `SampleQuality`.

    Args:
        samples: texts, or lists of the tokenizer's ids (special ones are dropped).
        tokenizer: defines the tokens of entropy, n-grams and repetition.
        judge: for the perplexity.
        on_progress: called with (samples judged, samples in all).

    Raises:
        UserError: no sample.
    """
    if not samples:
        raise UserError("sample_quality: got no sample; generate at least one")
    tokens, texts = _both(samples, tokenizer)
    full = [ids for ids in tokens if ids]
    verdicts = _judged(judge, texts, on_progress)
    return SampleQuality(
        num_samples=len(texts),
        num_tokens=sum(map(len, tokens)),
        num_characters=sum(map(len, texts)),
        empty_rate=sum(not text.strip() for text in texts) / len(texts),
        unigram_entropy=math.fsum(map(entropy, full)) / len(full) if full else 0.0,
        pooled_entropy=entropy([token for ids in tokens for token in ids]),
        distinct=(distinct(tokens, 1), distinct(tokens, 2), distinct(tokens, 3), distinct(tokens, 4)),
        repetition=repetition(tokens, 4),
        longest_run=max(map(longest_run, tokens)),
        **verdicts,
    )


def entropy(ids: Sequence[int]) -> float:
    """Entropy of the frequencies, nats; 0 for nothing."""
    counts = Counter(ids).values()
    return -math.fsum(n / len(ids) * math.log(n / len(ids)) for n in counts) + 0.0


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All runs of n tokens."""
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def distinct(samples: Sequence[Sequence[int]], n: int) -> float:
    """Distinct over all n-grams, pooled; NaN if there are none.

    References:
        Li et al., "A diversity-promoting objective function for neural conversation models", 2016, arXiv:1510.03055.
    """
    grams = [gram for ids in samples for gram in ngrams(ids, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(samples: Sequence[Sequence[int]], n: int) -> float:
    """Share of n-grams that already occurred in their sample, pooled; 0 if there are none.

    References:
        Welleck et al., "Neural text generation with unlikelihood training", 2019, arXiv:1908.04319 (seq-rep-n).
    """
    grams = [ngrams(ids, n) for ids in samples]
    total = sum(map(len, grams))
    return sum(len(g) - len(set(g)) for g in grams) / total if total else 0.0


def longest_run(ids: Sequence[int]) -> int:
    """The most times that one token stands in a row."""
    best = run = 0
    last: int | None = None
    for token in ids:
        run = run + 1 if token == last else 1
        best, last = max(best, run), token
    return best


def _both(samples: Sequence[Any], tokenizer: Tokenizer) -> tuple[list[list[int]], list[str]]:
    """Token ids without special ones, and texts."""
    if isinstance(samples[0], str):
        texts = [str(text) for text in samples]
        return [tokenizer.encode(text) for text in texts], texts
    special = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id}
    tokens = [[int(token) for token in ids if int(token) not in special] for ids in samples]
    return tokens, [tokenizer.decode(ids) for ids in tokens]


def _judged(judge: Judge | None, texts: Sequence[str], on_progress: Progress | None) -> dict[str, Any]:
    if judge is None:
        return {"perplexity": None, "perplexity_se": None, "judge_bits_per_character": None, "judge": None}
    verdicts = []
    for text in texts:
        verdicts.append(judge.nats([text]))
        if on_progress is not None:
            on_progress(len(verdicts), len(texts))
    nats, tokens, characters = (sum(part) for part in zip(*verdicts, strict=True))
    value = perplexity(Verdict(nats, tokens, characters))
    amounts = torch.tensor([v.nats for v in verdicts], dtype=torch.float64)
    error = value * ratio_spread(amounts, torch.tensor([v.num_tokens for v in verdicts], dtype=torch.float64))
    bits = nats / math.log(2) / characters if characters else math.nan
    return {
        "perplexity": value,
        "perplexity_se": error,
        "judge_bits_per_character": bits,
        "judge": judge.name,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
