"""Re-ranked candidates: the base with one of them, the tilted kernel with many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracts import SamplerContract
from unmask import Rng, sample, time_grid, trajectory
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TinyJoint, state_index
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.maskgit import MaskGIT
from unmask.samplers.reranked import Reranked

PROCESS = Masked(vocab_size=4, mask_id=3)


def real_sum(x: Tensor, s: Tensor, *, attention_mask: Tensor | None = None, **cond: object) -> Tensor:
    return (x if attention_mask is None else x * attention_mask).sum(1) * (1 - s)


class TestReranked(SamplerContract):
    def make(self) -> tuple[Reranked, Masked]:
        return Reranked(base=Ancestral(process=PROCESS), reward=real_sum, num_candidates=3, scale=0.5), PROCESS


class TestBestOf(SamplerContract):
    num_steps = 2

    def make(self) -> tuple[Reranked, Uniform]:
        process = Uniform(vocab_size=4)
        return Reranked(base=Ancestral(process=process), reward=real_sum, scale=torch.inf), process

    def world(self) -> TinyJoint:
        return TinyJoint.random(4, 3, seed=5)


def test_one_candidate_is_the_base_draw_for_draw() -> None:
    world, base = TinyJoint.random(3, 3, seed=5), Ancestral(process=PROCESS)
    one = Reranked(base=base, reward=real_sum, num_candidates=1)
    drawn = [sample(s, world.denoiser(PROCESS), (64, 3), num_steps=3, rng=Rng(1)) for s in (base, one)]
    assert torch.equal(*drawn)


def test_one_step_with_the_log_ratio_tends_to_the_data() -> None:
    """From independent sites to the joint law: the distance falls with the candidates."""
    world, n = TinyJoint.random(3, 3, seed=5), 40_000
    base, exact = Ancestral(process=PROCESS), world.denoiser(PROCESS)
    law = world.sampler_law(base.transition, exact, PROCESS, time_grid(1))
    ratio = (world.as_states(PROCESS) / law).log().nan_to_num()

    def reward(x: Tensor, s: Tensor, **cond: object) -> Tensor:
        return ratio[state_index(x, 4)]

    far = []
    for m in (1, 2, 4, 16):
        sampler = Reranked(base=base, reward=reward, num_candidates=m)
        drawn = sample(sampler, exact, (n, 3), num_steps=1, rng=Rng(m))
        share = state_index(drawn, 4).bincount(minlength=64) / n
        far.append(total_variation(share.double(), world.as_states(PROCESS)))
    print("TV by candidates:", [round(v, 3) for v in far])
    assert far[1] < 0.8 * far[0]
    assert far[2] < 0.8 * far[1]
    assert far[3] < 0.06


def test_an_infinite_scale_keeps_the_best_and_a_zero_scale_any() -> None:
    world, base = TinyJoint.random(3, 3, seed=5), Ancestral(process=PROCESS)
    exact, x = world.denoiser(PROCESS), PROCESS.prior((4000, 3), Rng(0))
    means = []
    for scale in (0.0, 1.0, torch.inf):
        sampler = Reranked(base=base, reward=real_sum, num_candidates=4, scale=scale)
        (event,) = trajectory(sampler, exact, x, time_grid(1), rng=Rng(1))
        assert event.network_calls == 1
        means.append(float(event.canvas.double().sum(1).mean()))
        scores = exact(x, torch.ones(4000).double()).token_log_prob(event.canvas)
        torch.testing.assert_close(event.commit_log_prob.double(), scores.double(), atol=1e-5, rtol=0)
    assert abs(means[0] - float((world.probs * world.sequences.sum(1)).sum())) < 0.12
    assert means[0] + 0.3 < means[1] < means[2] - 0.1


def test_refuses() -> None:
    base = Ancestral(process=PROCESS)
    for wrong in ({"num_candidates": 0}, {"scale": -1.0}):
        with pytest.raises(ValueError, match="Reranked"):
            Reranked(**{"base": base, "reward": real_sum, **wrong})
    with pytest.raises(TypeError, match="Ancestral"):
        Reranked(base=MaskGIT(process=PROCESS), reward=real_sum)  # type: ignore[arg-type]
    broken = Reranked(base=base, reward=lambda x, s, **cond: real_sum(x, s) / 0, num_candidates=2)
    with pytest.raises(ValueError, match="finite"):
        sample(broken, TinyJoint.random(3, 3, seed=5).denoiser(PROCESS), (4, 3), num_steps=1, rng=Rng(0))
