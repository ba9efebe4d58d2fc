"""Other libraries' samplers behind one signature; each is left out if its package is not installed.

A peer is `run(logits_of, shape, mask_id, num_steps) -> tokens`, where `logits_of(tokens)` is the network: logits
(b, l, v) at every position. It is *exact* if it targets the law of its diffusion process, *heuristic* otherwise.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LogitsOf = Callable[[Tensor], Tensor]
Run = Callable[[LogitsOf, tuple[int, int, int], int], Tensor]


@dataclass(frozen=True)
class Peer:
    run: Run  # (logits_of, (b, l, v), num_steps); the mask is state v - 1
    exact: bool


def installed_peers() -> dict[str, Peer]:
    """The peers that can be imported, by name."""
    peers: dict[str, Peer] = {}
    if importlib.util.find_spec("flow_matching"):
        peers["flow_matching Euler"] = Peer(flow_matching_euler, exact=True)
    if importlib.util.find_spec("diffusers"):
        peers["diffusers VQ"] = Peer(diffusers_vq, exact=True)
        peers["diffusers discrete DDIM"] = Peer(diffusers_ddim, exact=True)
        peers["diffusers amused"] = Peer(diffusers_amused, exact=False)
        peers["diffusers block refinement"] = Peer(diffusers_blocks, exact=False)
        peers["diffusers entropy bound"] = Peer(diffusers_entropy, exact=False)
    return peers


def flow_matching_euler(logits_of: LogitsOf, size: tuple[int, int, int], num_steps: int) -> Tensor:
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler
    from flow_matching.solver import MixtureDiscreteEulerSolver
    from flow_matching.utils import ModelWrapper

    class Wrapped(ModelWrapper):
        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
            return logits_of(x).softmax(-1)

    path = MixtureDiscreteProbPath(scheduler=PolynomialConvexScheduler(n=1.0))
    solver = MixtureDiscreteEulerSolver(model=Wrapped(torch.nn.Identity()), path=path, vocabulary_size=size[2])
    grid = torch.linspace(0.0, 1.0, num_steps + 1)
    return solver.sample(x_init=_masks(size), step_size=None, time_grid=grid)


def diffusers_vq(logits_of: LogitsOf, size: tuple[int, int, int], num_steps: int) -> Tensor:
    from diffusers import VQDiffusionScheduler

    scheduler = VQDiffusionScheduler(num_vec_classes=size[2], num_train_timesteps=num_steps)
    scheduler.set_timesteps(num_steps)
    x = _masks(size)
    for t in scheduler.timesteps:
        log_probs = logits_of(x)[..., :-1].log_softmax(-1).transpose(1, 2)  # without the mask: (b, v - 1, l)
        x = scheduler.step(log_probs, timestep=t, sample=x).prev_sample
    return x


def diffusers_ddim(logits_of: LogitsOf, size: tuple[int, int, int], num_steps: int) -> Tensor:
    from diffusers import DiscreteDDIMScheduler

    scheduler = DiscreteDDIMScheduler()
    scheduler.set_timesteps(num_steps)
    x = torch.randint(size[2], size[:2])
    for t in scheduler.timesteps:
        x = scheduler.step(logits_of(x), t, x, temperature=1.0).prev_sample
    return x


def diffusers_amused(logits_of: LogitsOf, size: tuple[int, int, int], num_steps: int) -> Tensor:
    from diffusers import AmusedScheduler

    scheduler = AmusedScheduler(mask_token_id=size[2] - 1, masking_schedule="linear")
    scheduler.set_timesteps(num_steps)
    x = _masks(size)
    for t in scheduler.timesteps:
        x = scheduler.step(logits_of(x), t, x).prev_sample
    return x


def diffusers_blocks(logits_of: LogitsOf, size: tuple[int, int, int], num_steps: int) -> Tensor:
    from diffusers import BlockRefinementScheduler

    scheduler = BlockRefinementScheduler()
    scheduler.set_timesteps(num_steps, block_length=size[1])
    x = _masks(size)
    for step in range(num_steps):
        x = scheduler.step(logits_of(x), step, x, mask_token_id=size[2] - 1, temperature=1.0).prev_sample
    return x


def diffusers_entropy(logits_of: LogitsOf, size: tuple[int, int, int], num_steps: int) -> Tensor:
    from diffusers import EntropyBoundScheduler

    scheduler = EntropyBoundScheduler()
    scheduler.set_timesteps(num_steps)
    x = torch.randint(size[2], size[:2])
    for t in scheduler.timesteps:
        x = scheduler.step(logits_of(x), t, x).prev_sample
    return x


def _masks(size: tuple[int, int, int]) -> Tensor:
    return torch.full(size[:2], size[2] - 1)
