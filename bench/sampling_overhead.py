"""Milliseconds per ancestral step outside the network: fixed logits, so that the network costs nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure import Row, fastest, interleaved, listed
from bench.peers import installed_peers
from unmask import Rng, sample
from unmask.denoisers.masked import MaskedDenoiser
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral


class FixedLogits(nn.Module):
    """A network whose hidden states are a fixed table of logits (b, l, v); of fewer rows, its first ones."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.head, self.table = nn.Identity(), table

    def forward(self, tokens: Tensor, t: Tensor, **_: Any) -> Tensor:
        return self.table[: len(tokens)]


def ancestral(net: nn.Module, size: tuple[int, int, int], num_steps: int, seed: int = 0) -> Tensor:
    """Tokens (b, l) from `unmask`; the mask is the last state."""
    mask_id = size[2] - 1
    sampler = Ancestral(process=Masked(vocab_size=size[2], mask_id=mask_id))
    denoiser = MaskedDenoiser(net, vocab_size=size[2], mask_id=mask_id)
    tokens = sample(sampler, denoiser, size[:2], num_steps=num_steps, rng=Rng(seed))
    assert isinstance(tokens, Tensor)
    return tokens


def compare(
    size: tuple[int, int, int], *, num_steps: int, peer_steps: int, repetitions: int, wanted: float
) -> list[Row]:
    """One row for a size (b, l, v): the fastest peer's time per step over ours."""
    table = torch.randn(size, generator=torch.Generator().manual_seed(0))
    net = FixedLogits(table)
    works = {"unmask": partial(ancestral, net, size, num_steps)}
    for name, peer in installed_peers().items():
        works[name] = partial(peer.run, lambda _: table, size, peer_steps)
    with torch.no_grad():
        best = interleaved(works, repetitions, warm_up=repetitions > 2)
    per_step = {name: s / (num_steps if name == "unmask" else peer_steps) for name, s in best.items()}
    if len(works) == 1:
        what = f"sampling outside the network per step, {size}, {num_steps} steps, no peer installed"
        return [Row(target_number="1", what=what, value=1e3 * per_step["unmask"], unit="ms")]
    rival, seconds = fastest(per_step, apart="unmask")
    return [
        Row(
            target_number="1",
            what=f"sampling outside the network per step, {size}, {num_steps} steps: {rival} over unmask",
            value=seconds / per_step["unmask"],
            bound=wanted,
            at_least=True,
            details=listed(per_step),
        )
    ]


def rows() -> list[Row]:
    # peers cost the same at every step, so a few of their slow steps at the large vocabulary are enough
    small = compare((8, 256, 28), num_steps=64, peer_steps=64, repetitions=7, wanted=3)
    return small + compare((1, 1024, 50258), num_steps=64, peer_steps=2, repetitions=2, wanted=50)
