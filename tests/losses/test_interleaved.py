"""The loss of interleaved diffusion is least at the exact conditionals, of tokens and of numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interleaved_worlds import Exact, PaddedMixed, draw, process
from unmask import Rng
from unmask.denoisers.interleaved import InterleavedDenoiser
from unmask.losses.interleaved import InterleavedLoss
from unmask.processes.interleaved import TOKENS, VALUES

NOISE = process(4)
LOSS = InterleavedLoss(process=NOISE)


class Bent(nn.Module):
    """The exact outputs, moved."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0, lean: float = 0.0) -> None:
        super().__init__()
        self.exact, self.scale, self.shift, self.lean = Exact(NOISE), scale, shift, lean

    def forward(self, *inputs: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        self.seen = inputs
        logits, means = self.exact(*inputs, **cond)
        return self.scale * logits, means + self.shift + self.lean * inputs[1]  # of the number as it stands


def test_the_exact_conditionals_are_the_minimum() -> None:
    x = draw(20_000, Rng(3))

    def value(net: nn.Module) -> Tensor:
        return LOSS(InterleavedDenoiser(net, NOISE), x, Rng(4))

    best = value(Bent())
    for moved in ({"scale": 0.7}, {"scale": 1.4}, {"shift": 0.15}, {"shift": -0.15}, {"lean": 0.15}, {"lean": -0.15}):
        worse = Bent(**moved)
        gap = value(worse) - best
        assert float(gap.mean()) > 5.3 * float(gap.std()) / len(gap) ** 0.5


def test_given_elements_stay_cost_nothing_and_are_told() -> None:
    net, x = Bent(), draw(4000, Rng(7))
    values = InterleavedLoss(process=NOISE, given_share=1.0)(InterleavedDenoiser(net, NOISE), x, Rng(8))
    tokens, numbers, _, _, visited, given = net.seen
    assert abs(float(given.double().mean()) - 0.5) < 5.3 * 0.41 / 4000**0.5  # a row's share has variance 1/12
    assert torch.equal(values == 0, (visited & given).any(1))
    for now, before, at in ((tokens, x[TOKENS], slice(2)), (numbers, x[VALUES], slice(2, 3))):
        kept = given[:, at] & ~visited[:, at]
        assert torch.equal(now[kept], before[kept].to(now.dtype))


def test_all_parts_of_a_visit_are_trained_alike() -> None:
    net, n = Bent(), 4000
    LOSS(InterleavedDenoiser(net, NOISE), draw(n, Rng(7)), Rng(8))
    u = net.seen[3]
    assert 0 < float(u.min()) < float(u.max()) <= 1
    assert abs(float(u.mean()) - 1 / 2) < 5.3 * (1 / 12 / n) ** 0.5
    assert abs(float(u.square().mean()) - 1 / 3) < 5.3 * (4 / 45 / n) ** 0.5


def test_rows_do_not_depend_on_their_batch() -> None:
    x, denoiser, loss = (
        draw(6, Rng(1)),
        InterleavedDenoiser(Bent(), NOISE),
        InterleavedLoss(process=NOISE, given_share=0.7),
    )
    together = loss(denoiser, x, Rng(2).rows(torch.arange(6)))
    for i in range(6):
        alone = {k: v[i : i + 1] for k, v in x.items()}
        torch.testing.assert_close(loss(denoiser, alone, Rng(2).rows(torch.tensor([i]))), together[i : i + 1])


def test_padding_amount_side_and_content_change_nothing() -> None:
    """Neither the loss nor its gradient, be the padding the hidden symbol's id and no number."""
    net = PaddedMixed()
    denoiser, loss = InterleavedDenoiser(net, NOISE), InterleavedLoss(process=NOISE, given_share=0.7)
    x, pads = draw(64, Rng(1)), {TOKENS: 2, VALUES: float("nan")}

    def value_and_slope(left: int, right: int) -> tuple[Tensor, Tensor]:
        wide = {k: torch.nn.functional.pad(v, (left, right), value=pads[k]) for k, v in x.items()}
        real = [torch.nn.functional.pad(torch.ones_like(v).bool(), (left, right)) for v in x.values()]
        value = loss(denoiser, wide, Rng(2), attention_mask=torch.cat(real, 1))
        return value, torch.autograd.grad(value.sum(), net.slope)[0]

    bare = loss(denoiser, x, Rng(2))
    for left, right in [(0, 0), (3, 0), (0, 4), (2, 1)]:
        value, slope = value_and_slope(left, right)
        torch.testing.assert_close(value, bare)
        assert bool(slope.isfinite())


def test_refuses() -> None:
    with pytest.raises(ValueError, match="given_share=2"):
        InterleavedLoss(process=NOISE, given_share=2.0)
    x, real = draw(2, Rng(1)), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"wanted \(2, 3\)"):
        LOSS(InterleavedDenoiser(Bent(), NOISE), x, Rng(0), attention_mask=real)
