"""Milliseconds per network call, outside the network, of the other samplers: fixed logits, 50,258 states."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.measure import Row, fastest, interleaved, listed
from bench.peers import installed_peers
from bench.sampling_overhead import FixedLogits
from unmask import Denoiser, Rng, Sampler, sample, trajectory
from unmask.denoisers.categorical import CategoricalDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.euler import Euler
from unmask.samplers.first_hitting import FirstHitting
from unmask.samplers.remdm import ReMDM, rescale
from unmask.samplers.tau_leaping import TauLeaping
from unmask.samplers.theta_trapezoidal import ThetaTrapezoidal

SIZE = (1, 1024, 50_258)
NUM_STEPS, PEER_STEPS = 64, 2
CALLS_OF_A_STEP = {"theta-trapezoidal": 2}


def run(sampler: Sampler, denoiser: Denoiser, num_steps: int) -> None:
    sample(sampler, denoiser, SIZE[:2], num_steps=num_steps, rng=Rng(0))


def at_few_positions(table: Tensor) -> dict[str, Callable[[], None]]:
    """Masked noise: values are needed where a mask is revealed."""
    mask_id = SIZE[2] - 1
    process = Masked(vocab_size=SIZE[2], mask_id=mask_id)
    denoiser = MaskedDenoiser(FixedLogits(table), vocab_size=SIZE[2], mask_id=mask_id)
    samplers: dict[str, Sampler] = {
        "re-masking": ReMDM(process=process, sigma=rescale(0.1)),
        "first hitting": FirstHitting(process=process, parallel=SIZE[1] // NUM_STEPS),
        "Euler": Euler(process=process),
    }
    return {name: partial(run, sampler, denoiser, NUM_STEPS) for name, sampler in samplers.items()}


def everywhere(table: Tensor, num_steps: int) -> dict[str, Callable[[], None]]:
    """Uniform noise: every position has rates to every state. Steps in the middle of time, as most of them are."""
    process = Uniform(vocab_size=SIZE[2])
    denoiser = CategoricalDenoiser(FixedLogits(table), vocab_size=SIZE[2])
    samplers: dict[str, Sampler] = {
        "Euler": Euler(process=process),
        "tau-leaping": TauLeaping(process=process),
        "theta-trapezoidal": ThetaTrapezoidal(process=process),
    }
    times = torch.linspace(0.5, 0.5 - num_steps / NUM_STEPS, num_steps + 1, dtype=torch.float64)
    x = process.prior(SIZE[:2], Rng(1))
    return {name: partial(walk, sampler, denoiser, x, times) for name, sampler in samplers.items()}


def walk(sampler: Sampler, denoiser: Denoiser, x: Tensor, times: Tensor) -> None:
    for _ in trajectory(sampler, denoiser, x, times, rng=Rng(0)):
        pass


def rows() -> list[Row]:
    """Target 8."""
    table = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    peers = {
        name: partial(peer.run, lambda _: table, SIZE, PEER_STEPS)
        for name, peer in installed_peers().items()
        if peer.exact
    }
    few, dense = at_few_positions(table), everywhere(table, PEER_STEPS)
    with torch.no_grad():
        rivals = {name: s / PEER_STEPS for name, s in interleaved(peers, 2, warm_up=False).items()}
        ours = {name: s / NUM_STEPS for name, s in interleaved(few, 2, warm_up=False).items()}
        theirs = {
            name: s / PEER_STEPS / CALLS_OF_A_STEP.get(name, 1)
            for name, s in interleaved(dense, 2, warm_up=False).items()
        }
    return [
        *(_row(f"{name}, masked noise", s, rivals, 20) for name, s in ours.items()),
        *(_row(f"{name}, uniform noise", s, rivals, 3) for name, s in theirs.items()),
    ]


def _row(name: str, seconds: float, rivals: dict[str, float], wanted: float) -> Row:
    what = f"sampling outside the network per call, {SIZE}: {name}"
    if not rivals:
        return Row(target_number="8", what=f"{what}, no peer installed", value=1e3 * seconds, unit="ms")
    rival, theirs = fastest(rivals, apart="")
    return Row(
        target_number="8",
        what=f"{what}: {rival} over unmask",
        value=theirs / seconds,
        bound=wanted,
        at_least=True,
        details=listed({"unmask": seconds, **rivals}),
    )
