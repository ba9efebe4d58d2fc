"""Re-ranked candidates: the base with one of them, the tilted kernel with many."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracts import SamplerContract
from unmask import Denoiser, Rng, Sampler, sample, time_grid, trajectory
from unmask.guidance.classifier import ClassifierGuided
from unmask.oracles.statistics import kl_divergence, total_variation
from unmask.oracles.tiny_joint import TableDenoiser, TinyJoint, enumerate_states, state_index
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


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_the_gradient_tilt_of_a_wrong_student_composes_with_re_ranking(seed: int) -> None:
    """Two steps of a student of flat logits; the reward is the log ratio of the data to its output where revealed."""
    world, base, states = TinyJoint.random(3, 3, seed=seed), Ancestral(process=PROCESS), enumerate_states(4, 3)
    exact, data, times = world.denoiser(PROCESS), world.as_states(PROCESS), time_grid(2)

    def flat(x: Tensor, t: Tensor) -> Tensor:
        probs = exact(x, t).log_probs().exp()
        return torch.where((x == 3)[..., None], torch.softmax(probs.log() / 2, -1), probs)

    def where_revealed(law: Tensor) -> Tensor:
        agrees = (states[:, None] == states[None]) | (states[:, None] == 3)
        return agrees.all(2).double() @ law

    student = TableDenoiser(flat)
    ratio = (where_revealed(data) / where_revealed(world.sampler_law(base.transition, student, PROCESS, times))).log()

    def of_one_hots(x: Tensor, t: Tensor, **cond: object) -> Tensor:
        a, b, c = x.double().unbind(1)
        return torch.einsum("na,nb,nc,abc->n", a, b, c, ratio.reshape(4, 4, 4))

    def reward(x: Tensor, s: Tensor, **cond: object) -> Tensor:
        return ratio[state_index(x, 4)]

    tilted = ClassifierGuided(student, classifier=of_one_hots, first_order=True)
    x = torch.tensor([[3, 1, 3]])
    others = torch.tensor([[[v, 1, 3] for v in range(3)], [[3, 1, v] for v in range(3)]])
    by_hand = flat(x, torch.full((1,), 0.5))[0, [0, 2], :3] * ratio[state_index(others.flatten(0, 1), 4)].exp().reshape(2, 3)
    law = tilted(x, torch.full((1,), 0.5)).log_probs().exp()[0, [0, 2], :3]
    torch.testing.assert_close(law, by_hand / by_hand.sum(-1, keepdim=True))

    plain, mended = (
        kl_divergence(data, world.sampler_law(base.transition, d, PROCESS, times)) for d in (student, tilted)
    )

    def distance(sampler: Sampler, denoiser: Denoiser) -> float:
        drawn = sample(sampler, denoiser, (40_000, 3), num_steps=2, rng=Rng(1))
        return total_variation(state_index(drawn, 4).bincount(minlength=64) / 40_000.0, data)

    ranked = Reranked(base=base, reward=reward)
    far = [distance(s, d) for s, d in ((base, student), (base, tilted), (ranked, student), (ranked, tilted))]
    print(f"KL {plain:.3f} to {mended:.3f}; TV alone, tilted, re-ranked, both:", [round(v, 3) for v in far])
    assert mended < 0.5 * plain
    assert far[1] < 0.65 * far[0]
    assert max(far[2:]) < 0.4 * far[0]


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
