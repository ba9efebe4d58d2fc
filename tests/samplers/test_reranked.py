"""Re-ranked candidates: the base with one of them, the tilted kernel with many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import SamplerContract
from unmask import Denoiser, Rng, sample, time_grid, trajectory
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


# -- the gradient tilt ---------------------------------------------------------------------------------------------


class TwoSteps:
    """A student's two steps, and the exact log ratio of the data's law of noised sequences to its own as reward.

    The student is the exact denoiser, whose one fault is that the sites of a step are independent, or, `flat`, one
    whose logits at masks are halved as well.
    """

    def __init__(self, seed: int, *, flat: bool, draws: int = 0) -> None:
        self.draws = draws
        self.world, self.base = TinyJoint.random(3, 3, seed=seed), Ancestral(process=PROCESS)
        self.student, self.data = self.world.denoiser(PROCESS), self.world.as_states(PROCESS)
        if flat:
            self.student = TableDenoiser(self._flattened)
        self.ratio = (where_revealed(self.data) / where_revealed(self.law(self.student))).log()

    def _flattened(self, x: Tensor, t: Tensor) -> Tensor:
        probs = self.world.conditionals(PROCESS, x, t)
        return torch.where((x == 3)[..., None], torch.softmax(probs.log() / 2, -1), probs)

    def law(self, denoiser: Denoiser) -> Tensor:
        return self.world.sampler_law(self.base.transition, denoiser, PROCESS, time_grid(2))

    def tilted(self, scale: Any = 1.0) -> ClassifierGuided:
        return ClassifierGuided(self.student, self._of_vectors, first_order=True, guidance_scale=scale)

    def _of_vectors(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
        return torch.einsum("na,nb,nc,abc->n", *x.double().unbind(1), self.ratio.reshape(4, 4, 4))

    def of_tokens(self, x: Tensor, s: Tensor, **cond: object) -> Tensor:
        return self.ratio[state_index(x, 4)]

    def of_the_late(self, x: Tensor, s: Tensor, **cond: object) -> Tensor:
        return self.of_tokens(x, s) * (s == 0)

    def far(self, denoiser: Denoiser, reward: Any = None) -> float:
        """KL(what two steps give || data), nats: by recursion, or, re-ranked, by draws."""
        if reward is None:
            return kl_divergence(self.law(denoiser), self.data)
        drawn = sample(Reranked(base=self.base, reward=reward), denoiser, (self.draws, 3), num_steps=2, rng=Rng(1))
        return kl_divergence(state_index(drawn, 4).bincount(minlength=64) / float(self.draws), self.data)


def where_revealed(law: Tensor) -> Tensor:
    states = enumerate_states(4, 3)
    agrees = (states[:, None] == states[None]) | (states[:, None] == 3)
    return agrees.all(2).double() @ law


WORLDS = pytest.mark.parametrize(
    ("seed", "draws"),
    [(6, 20_000), *(pytest.param(seed, 100_000, marks=pytest.mark.slow) for seed in (5, 6, 7))],
)


def early(t: Tensor) -> Tensor:
    return (t > 0.75).double()


@pytest.mark.parametrize("h", [0.5, 1.0, 3.0])
def test_the_gradient_tilt_by_hand(h: float) -> None:
    """p(v) exp(h R(canvas with v)), normalised: the reward is linear in each site's vector."""
    two, x, half = TwoSteps(6, flat=True), torch.tensor([[3, 1, 3]]), torch.full((1,), 0.5)
    for site, others in ((0, [[v, 1, 3] for v in range(3)]), (2, [[3, 1, v] for v in range(3)])):
        by_hand = (
            two.student(x, half).log_probs().exp()[0, site, :3] * (h * two.of_tokens(torch.tensor(others), half)).exp()
        )
        tilted = two.tilted(h)(x, half).log_probs().exp()[0, site]
        torch.testing.assert_close(tilted[:3], by_hand / by_hand.sum())
        assert float(tilted[3]) == 0


@WORLDS
def test_tilt_and_re_ranking_of_a_student_of_independent_sites(seed: int, draws: int) -> None:
    """From masks alone each site has its right law, so that there is next to nothing to tilt: the later step gains."""
    two = TwoSteps(seed, flat=False, draws=draws)
    alone, tilted = two.far(two.student), two.far(two.tilted())
    ranked, both = two.far(two.student, two.of_tokens), two.far(two.tilted(), two.of_tokens)
    print(f"independent, KL alone, tilted, re-ranked, both: {alone:.3f} {tilted:.3f} {ranked:.4f} {both:.4f}")
    assert abs(two.far(two.tilted(early)) - alone) < 0.002
    assert tilted < 0.75 * alone
    assert ranked < 0.1 * alone
    assert both < ranked


@WORLDS
def test_tilt_and_re_ranking_of_a_flat_student(seed: int, draws: int) -> None:
    """The paper's order, tilt the early step and re-rank the late one, beats either of its halves."""
    two = TwoSteps(seed, flat=True, draws=draws)
    alone, tilted, begun = (two.far(each) for each in (two.student, two.tilted(), two.tilted(early)))
    ranked, ended = (two.far(two.student, each) for each in (two.of_tokens, two.of_the_late))
    both, paper = two.far(two.tilted(), two.of_tokens), two.far(two.tilted(early), two.of_the_late)
    print(f"flat, KL alone, tilted, re-ranked, both: {alone:.3f} {tilted:.3f} {ranked:.3f} {both:.3f}")
    print(f"  early tilt, late re-ranking, the two: {begun:.3f} {ended:.3f} {paper:.3f}")
    assert tilted < 0.55 * alone
    assert ranked < 0.1 * alone
    assert both < 0.15 * alone
    assert paper < 0.25 * alone
    assert paper < min(begun, ended)


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
