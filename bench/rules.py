"""One step of each rule of planned unmasking over the network and the head at the masked positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.measure import Row, interleaved
from unmask import Rng
from unmask.blocks import map_sites
from unmask.denoisers.masked import MaskedDenoiser
from unmask.nn.transformer import Transformer, TransformerConfig
from unmask.processes.masked import Masked
from unmask.sampler import Carry
from unmask.samplers.unmask import Unmask
from unmask.select.entropy import entropy
from unmask.select.entropy_bound import entropy_bound
from unmask.select.margin import margin
from unmask.select.random import random_order
from unmask.select.threshold import threshold
from unmask.select.top_probability import top_probability

NUM_STEPS = 64


def rules(process: Masked) -> dict[str, Unmask]:
    """Those that look at all masks, and the random order, which looks at none."""
    return {
        "random": Unmask(process=process, order=random_order),
        "confidence": Unmask(process=process, order=top_probability()),
        "margin": Unmask(process=process, order=margin()),
        "entropy": Unmask(process=process, order=entropy()),
        "threshold": Unmask(process=process, order=top_probability(), quota=threshold(0.9)),
        "entropy bound": Unmask(process=process, order=entropy(), quota=entropy_bound(0.1)),
    }


def network_and_head(net: Transformer, x: Tensor, t: Tensor, mask_id: int) -> None:
    """What every rule that looks at all masks must compute: hidden states, and logits where a mask stands."""
    hidden, where = net(x, t).flatten(0, 1), x == mask_id

    def seen(some: Tensor) -> Tensor:
        return net.head(hidden[some.flatten()])[:, 0]

    map_sites(seen, where, net.config.vocab_size)


def step(sampler: Unmask, denoiser: MaskedDenoiser, x: Tensor, t: Tensor) -> None:
    sampler.step(denoiser, x, t, t - 1 / NUM_STEPS, Carry(), Rng(0))


def compare(vocab_size: int, batch: int, length: int, *, wanted: float, repetitions: int) -> list[Row]:
    """A step in the middle of a sequence, half of whose places are masked."""
    torch.manual_seed(0)
    net, mask_id = Transformer(TransformerConfig.small(vocab_size=vocab_size, max_length=length)), vocab_size - 1
    process = Masked(vocab_size=vocab_size, mask_id=mask_id)
    denoiser = MaskedDenoiser(net, vocab_size=vocab_size, mask_id=mask_id)
    t = torch.full((batch,), 0.5, dtype=torch.float64)
    x = process.corrupt(torch.randint(mask_id, (batch, length)), t, Rng(1))
    works: dict[str, Callable[[], None]] = {
        name: partial(step, sampler, denoiser, x, t) for name, sampler in rules(process).items()
    }
    with torch.no_grad():
        best = interleaved({"plain": partial(network_and_head, net, x, t, mask_id), **works}, repetitions)
    return [
        Row(
            target_number="7",
            what=f"a step of unmasking, {batch} x {length} tokens, {vocab_size} states: {name} over network and head",
            value=best[name] / best["plain"],
            bound=wanted,
            at_least=False,
            details=f"{name} {best[name]:.3g} s, network and head at the masks {best['plain']:.3g} s",
        )
        for name in works
    ]


def rows() -> list[Row]:
    """Target 7."""
    return compare(28, 64, 256, wanted=1.2, repetitions=1) + compare(50_000, 8, 1024, wanted=1.3, repetitions=1)
