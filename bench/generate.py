"""Whole generation with a real network: same network and steps, against other libraries' exact samplers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from bench.measure import Row, fastest, has_bfloat16, interleaved
from bench.peers import Peer, installed_peers
from bench.sampling_overhead import ancestral
from unmask.nn.transformer import Transformer, TransformerConfig


def precision() -> AbstractContextManager[object]:
    """bfloat16 for the network where the processor has it, else float32."""
    return torch.autocast("cpu", torch.bfloat16) if has_bfloat16() else nullcontext()


def compare(
    net: Transformer, size: tuple[int, int, int], *, num_steps: int, repetitions: int, only: str | None = None
) -> tuple[list[Row], str | None]:
    """One row at a size (b, l, v), and the name of the fastest exact peer; `only` limits the race to that one."""

    def ours(steps: int) -> Tensor:
        with precision():
            return ancestral(net, size, steps)

    def theirs(peer: Peer, steps: int) -> Tensor:
        return peer.run(lambda x: net.head(net(x).flatten(0, 1)).unflatten(0, x.shape), size, steps)

    runs: dict[str, Callable[[int], Tensor]] = {"unmask": ours}
    for name, peer in installed_peers().items():
        if peer.exact and only in (None, name):
            runs[name] = partial(theirs, peer)
    with torch.no_grad():
        for run in runs.values():
            run(2)
        best = interleaved({name: partial(run, num_steps) for name, run in runs.items()}, repetitions, warm_up=False)
    speeds = ", ".join(f"{name} {size[0] * size[1] / s:.3g} tokens/s" for name, s in best.items())
    if len(runs) == 1:
        what = f"generation at {size}, {num_steps} steps, no peer installed"
        return [Row(target_number="5b", what=what, value=best["unmask"], unit="s", details=speeds)], None
    rival, seconds = fastest(best, apart="unmask")
    row = Row(
        target_number="5b",
        what=f"generation at {size}, {num_steps} steps: unmask over the fastest exact peer ({rival}), tokens/s",
        value=seconds / best["unmask"],
        bound=1.8,
        at_least=True,
        details=f"{speeds}; unmask in {'bfloat16' if has_bfloat16() else 'float32'}",
    )
    return [row], rival


def rows() -> list[Row]:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig.small(vocab_size=28, max_length=256)).eval()
    short, rival = compare(net, (1, 256, 28), num_steps=64, repetitions=3)
    # at 64 steps nearly every step reveals something; skipped calls show where steps are as many as tokens
    long, _ = compare(net, (1, 256, 28), num_steps=256, repetitions=1, only=rival)
    return short + long
