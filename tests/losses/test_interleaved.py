"""The loss of interleaved diffusion is least at the exact conditionals, of tokens and of numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interleaved_worlds import Exact, draw, process
from unmask import Rng
from unmask.denoisers.interleaved import InterleavedDenoiser
from unmask.losses.interleaved import InterleavedLoss

NOISE = process(4)
LOSS = InterleavedLoss(process=NOISE)


class Bent(nn.Module):
    """The exact outputs, moved."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.exact, self.scale, self.shift = Exact(NOISE), scale, shift

    def forward(self, *inputs: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        logits, means = self.exact(*inputs, **cond)
        return self.scale * logits, means + self.shift


def test_the_exact_conditionals_are_the_minimum() -> None:
    x = draw(20_000, Rng(3))

    def value(net: nn.Module) -> Tensor:
        return LOSS(InterleavedDenoiser(net, NOISE), x, Rng(4))

    best = value(Bent())
    for worse in (Bent(scale=0.7), Bent(scale=1.4), Bent(shift=0.15), Bent(shift=-0.15)):
        gap = value(worse) - best
        assert float(gap.mean()) > 5.3 * float(gap.std()) / len(gap) ** 0.5


def test_given_elements_cost_nothing_and_are_told() -> None:
    class Telling(Bent):
        def forward(self, *inputs: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
            self.given = inputs[5]
            return super().forward(*inputs, **cond)

    net, x = Telling(), draw(4000, Rng(7))
    values = InterleavedLoss(process=NOISE, given_share=1.0)(InterleavedDenoiser(net, NOISE), x, Rng(8))
    assert abs(float(net.given.double().mean()) - 0.5) < 5.3 * 0.41 / 4000**0.5  # a row's share has variance 1/12
    assert 0.3 < float((values == 0).double().mean()) < 0.7


def test_rows_do_not_depend_on_their_batch() -> None:
    x, denoiser = draw(6, Rng(1)), InterleavedDenoiser(Bent(), NOISE)
    together = LOSS(denoiser, x, Rng(2).rows(torch.arange(6)))
    for i in range(6):
        alone = {k: v[i : i + 1] for k, v in x.items()}
        torch.testing.assert_close(LOSS(denoiser, alone, Rng(2).rows(torch.tensor([i]))), together[i : i + 1])


def test_refuses() -> None:
    with pytest.raises(ValueError, match="given_share=2"):
        InterleavedLoss(process=NOISE, given_share=2.0)
    x, real = draw(2, Rng(1)), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="attention_mask"):
        LOSS(InterleavedDenoiser(Bent(), NOISE), x, Rng(0), attention_mask=real)
