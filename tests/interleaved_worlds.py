"""A tiny mixed world with exact conditionals: two dependent tokens, and a number whose mean they tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unmask import Rng
from unmask.processes.glauber import Glauber
from unmask.processes.interleaved import TOKENS, VALUES, Interleaved

JOINT = torch.tensor([[0.45, 0.05], [0.1, 0.4]], dtype=torch.float64)  # of two tokens
CENTRES = torch.tensor([[-1.2, 0.6], [0.2, 1.4]], dtype=torch.float64)  # of the number, given both
SPREAD = 0.35


def process(num_rounds: int = 8) -> Interleaved:
    return Interleaved(tokens=Glauber(vocab_size=2, num_rounds=num_rounds, keep=0.4), retention=0.5)


def draw(n: int, rng: Rng) -> dict[str, Tensor]:
    cell = torch.multinomial(JOINT.flatten(), n, replacement=True, generator=torch.Generator().manual_seed(rng.seed))
    tokens = torch.stack([cell // 2, cell % 2], 1)
    values = CENTRES.flatten()[cell] + SPREAD * rng.fold(1).normal((n,))
    return {TOKENS: tokens, VALUES: values[:, None]}


class Exact(nn.Module):
    """Bayes' rule over the four pairs of clean tokens, for `InterleavedDenoiser` without given elements."""

    def __init__(self, noise: Interleaved) -> None:
        super().__init__()
        self.noise = noise

    def forward(
        self, tokens: Tensor, values: Tensor, t: Tensor, u: Tensor, visited: Tensor, given: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        noise, a = self.noise, self.noise.retention
        real = torch.ones_like(visited)
        step = noise.tokens.step_of(t, real)
        # how often each element was visited, this visit included
        now = noise.tokens.visits(step, real).masked_fill(given, 0)
        log_weight = JOINT.flatten().log().expand(len(tokens), 4).clone()
        clean = torch.stack([torch.arange(4) // 2, torch.arange(4) % 2], 1)
        for site in range(2):
            kept = noise.tokens.keep ** now[:, site].double()
            likelihood = kept[:, None] * (clean[:, site] == tokens[:, site, None]) + (1 - kept[:, None]) / 2
            hidden = visited[:, site, None]
            log_weight += torch.where(hidden, torch.zeros_like(likelihood), likelihood.log())
        in_visit = visited[:, 2]
        power = torch.where(in_visit, now[:, 2] - 1 + u, now[:, 2].double())
        mean, variance = (a**power)[:, None] * CENTRES.flatten(), (a ** (2 * power)) * SPREAD**2 + 1 - a ** (2 * power)
        log_weight += -((values - mean) ** 2) / (2 * variance[:, None])
        weight = log_weight.softmax(1)

        odds = []
        for site in range(2):
            before = noise.tokens.keep ** (now[:, site] - 1).clamp(min=0).double()
            law = torch.stack([(weight * (clean[:, site] == v)).sum(1) for v in range(2)], 1)
            odds.append((before[:, None] * law + (1 - before[:, None]) / 2).log())
        old = a ** (now[:, 2] - 1).clamp(min=0).double()  # of y_0 in the number's own visit
        centre, spread = old[:, None] * CENTRES.flatten(), old**2 * SPREAD**2 + 1 - old**2
        gain = a**u * spread / (a ** (2 * u) * spread + 1 - a ** (2 * u))
        means = (weight * (centre + gain[:, None] * (values - (a**u)[:, None] * centre))).sum(1)
        return torch.stack(odds, 1), means[:, None]


class PaddedMixed(nn.Module):
    """For invariance tests: reads all real elements, the place of each and what is told of it."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(
        self,
        tokens: Tensor,
        values: Tensor,
        t: Tensor,
        u: Tensor,
        visited: Tensor,
        given: Tensor,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        real = torch.ones_like(visited) if attention_mask is None else attention_mask
        assert not bool((given & ~real).any()), "padding is told to be given"
        length = tokens.shape[1]
        everything = torch.cat([tokens.double(), values.double()], 1)
        seen = torch.sin(everything.where(real, 0.0) + given + 2 * visited + t[:, None] + u[:, None]).where(real, 0.0)
        # an element's place is that among its kind: tokens of a row do not move its numbers
        place = torch.cat([real[:, :length].cumsum(1), real[:, length:].cumsum(1)], 1)
        told = torch.sin(place + seen.sum(1, keepdim=True)) * self.slope
        return torch.stack([told[:, :length], -told[:, :length]], 2), told[:, length:]


def histogram(x: dict[str, Tensor]) -> Tensor:
    """The law of (tokens, number in bins of 0.4)."""
    cell = x[TOKENS][:, 0] * 2 + x[TOKENS][:, 1]
    bins = ((x[VALUES][:, 0].double() + 3) / 0.4).floor().clamp(0, 15).long()
    return (cell * 16 + bins).bincount(minlength=64).double() / len(cell)


def exact_histogram() -> Tensor:
    edges = torch.arange(0, 17, dtype=torch.float64) * 0.4 - 3
    edges[0], edges[-1] = -torch.inf, torch.inf
    below = torch.special.ndtr((edges - CENTRES.flatten()[:, None]) / SPREAD)
    return (JOINT.flatten()[:, None] * below.diff(dim=1)).flatten()
