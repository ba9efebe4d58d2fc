"""Recorded trajectories: the sampler's own draws, and their probabilities by the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import FALSE_ALARM, PaddedChain, SamplerContract
from helpers import padded
from policy_worlds import BITS, Tables, by_hand, trajectories
from unmask import Denoiser, Rng, sample
from unmask.denoisers.unmasking_policy import PolicyLaw
from unmask.oracles.statistics import chi_square
from unmask.oracles.tiny_joint import TinyJoint
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.maskgit import MaskGIT
from unmask.samplers.recorded import Recorded, Rollout, path, rollout
from unmask.samplers.unmask import Order, Unmask, per_step
from unmask.select.plackett_luce import plackett_luce
from unmask.select.random import random_order

PROCESS = Masked(vocab_size=4, mask_id=3)


class Scored(Denoiser):
    """A denoiser whose scores fall with the place among real tokens."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, xt: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: object) -> PolicyLaw:
        real = torch.ones_like(xt) if attention_mask is None else attention_mask.long()
        return PolicyLaw(self.inner(xt, t, attention_mask=attention_mask, **cond), -0.5 * real.cumsum(1).double())


class TestRecorded(SamplerContract):
    def make(self) -> tuple[Recorded, Masked]:
        return Recorded(base=Unmask(process=PROCESS, order=plackett_luce(), quota=per_step(1))), PROCESS

    def model(self) -> tuple[Recorded, Masked, Denoiser]:
        sampler, process = self.make()
        return sampler, process, Scored(self.world().denoiser(process))

    def test_padding_amount_and_side_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[override]
        monkeypatch.setattr("contracts.PaddedChain", lambda vocab_size: Scored(PaddedChain(vocab_size)))
        super().test_padding_amount_and_side_change_nothing()


def test_a_rollout_is_what_the_sampler_draws() -> None:
    world = TinyJoint.random(3, 4, seed=5)
    denoiser, canvas = Scored(world.denoiser(PROCESS)), world.sample(64, Rng(0))
    base, editable = Unmask(process=PROCESS, order=plackett_luce(), quota=per_step(2)), Rng(1).uniform((64, 4)) < 0.8
    found = rollout(base, denoiser, canvas, num_steps=3, rng=Rng(2), editable=editable)
    assert torch.equal(found.x, sample(base, denoiser, canvas, num_steps=3, rng=Rng(2), editable=editable))
    assert torch.equal(found.step >= 0, editable)
    assert bool((found.step[editable] < 2).all()), "two steps of two sites"
    counts = torch.stack([(found.step == k).sum(1) for k in range(3)], 1)
    assert torch.equal(counts[:, 0], editable.sum(1).clamp(max=2))


@pytest.mark.parametrize("k", [1, 2])
def test_log_probabilities_are_the_definitions_and_the_draws_follow_them(k: int) -> None:
    model, n = Tables(3, seed=4), 60_000
    listed = trajectories(3, k)
    exact = listed.log_probs(model).sum(1).detach()
    torch.testing.assert_close(exact, by_hand(model, listed).detach(), atol=1e-12, rtol=0)
    assert float(exact.exp().sum()) == pytest.approx(1.0, abs=1e-10)
    base = Unmask(process=BITS, order=plackett_luce(), quota=per_step(k))
    drawn = rollout(base, model, torch.zeros(n, 3, dtype=torch.int64), num_steps=listed.num_steps, rng=Rng(3))
    last = drawn.step == listed.num_steps - 1
    same = (key(drawn.x, drawn.step, drawn.place.masked_fill(last, 0))[:, None] == keys(listed)).nonzero()[:, 1]
    assert len(same) == n
    assert chi_square(same.bincount(minlength=len(exact)), exact.exp()) > FALSE_ALARM


def keys(listed: Rollout) -> Tensor:
    last = listed.step == listed.num_steps - 1
    return key(listed.x, listed.step, listed.place.masked_fill(last, 0))


def key(*parts: Tensor) -> Tensor:
    """One number for each row of small numbers."""
    flat = torch.cat(parts, 1)
    return (flat * 4 ** torch.arange(flat.shape[1])).sum(1)


def test_orders_that_are_given_cost_nothing_and_finished_rows_neither() -> None:
    world = TinyJoint.random(3, 4, seed=5)
    exact, canvas = world.denoiser(PROCESS), torch.zeros(32, 4, dtype=torch.int64)
    found = rollout(Unmask(process=PROCESS, quota=per_step(1)), exact, canvas, num_steps=6, rng=Rng(2))
    steps = found.log_probs(exact)
    torch.testing.assert_close(steps.sum(1), world.log_prob(found.x), msg="one at a time: the joint law")
    assert torch.equal(steps[:, 4:], torch.zeros(32, 2, dtype=torch.float64))


@pytest.mark.parametrize("order", [random_order, plackett_luce(noise=0.5), plackett_luce(noise=0.0)])
def test_orders_of_another_law_count_as_given_for_a_policy_too(order: Order) -> None:
    world = TinyJoint.random(3, 4, seed=5)
    denoiser, canvas = Scored(world.denoiser(PROCESS)), torch.zeros(32, 4, dtype=torch.int64)
    found = rollout(Unmask(process=PROCESS, order=order, quota=per_step(1)), denoiser, canvas, num_steps=4, rng=Rng(2))
    torch.testing.assert_close(found.log_probs(denoiser).sum(1), world.log_prob(found.x))


def test_places_do_not_depend_on_the_batch_and_policies_are_asked_for_scores() -> None:
    world = TinyJoint.random(3, 4, seed=5)
    denoiser, canvas = Scored(world.denoiser(PROCESS)), world.sample(8, Rng(0))
    base, editable = Unmask(process=PROCESS, order=plackett_luce(), quota=per_step(2)), Rng(1).uniform((8, 4)) < 0.7
    told: dict[str, Any] = {"num_steps": 3}
    whole = rollout(base, denoiser, canvas, rng=Rng(2).rows(torch.arange(8)), editable=editable, **told)
    for i in range(8):
        rng, one = Rng(2).rows(torch.tensor([i])), slice(i, i + 1)
        alone = rollout(base, denoiser, canvas[one], rng=rng, editable=editable[one], **told)
        for name in ("x", "step", "place"):
            assert torch.equal(getattr(alone, name), getattr(whole, name)[one])
    with pytest.raises(TypeError, match="wanted the PolicyLaw"):
        whole.log_probs(world.denoiser(PROCESS))


def test_fixed_sites_and_padding_of_a_path_are_not_scored() -> None:
    """Of uniform noise, whose kernel gives a site that was fixed a chance of moving."""
    process, chain = Uniform(vocab_size=4), PaddedChain(4)
    sampler, x = Ancestral(process=process), process.prior((16, 3), Rng(0))
    editable = torch.tensor([[True, False, True]]).expand(16, -1)
    found = path(sampler, chain, x, num_steps=3, rng=Rng(1), editable=editable)
    t, s = (found.times[k].expand(16) for k in (0, 1))
    sites = sampler.transition(chain, x, t, s).token_log_prob(found.canvases[1])  # type: ignore[attr-defined]
    torch.testing.assert_close(found.log_probs(chain)[:, 0], sites[:, [0, 2]].sum(1).double())
    assert float(sites[:, 1].abs().min()) > 0.01
    wide, real = padded(x, 2, 1)
    padded_path = path(sampler, chain, wide, num_steps=3, rng=Rng(1), attention_mask=real)
    narrow = path(sampler, chain, x, num_steps=3, rng=Rng(1))
    assert torch.equal(padded_path.canvases[-1][real].reshape(16, 3), narrow.canvases[-1])
    torch.testing.assert_close(padded_path.log_probs(chain, attention_mask=real), narrow.log_probs(chain))


def test_a_path_is_scored_by_its_kernel() -> None:
    """Of uniform noise, whose sites all may change in every step."""
    process, world = Uniform(vocab_size=3), TinyJoint.random(3, 2, seed=5)
    sampler, exact = Ancestral(process=process), world.denoiser(process)
    found = path(sampler, exact, process.prior((16, 2), Rng(0)), num_steps=3, rng=Rng(1))
    steps = found.log_probs(exact)
    t, s = (found.times[k].expand(16) for k in (1, 2))
    wanted = sampler.transition(exact, found.canvases[1], t, s).log_probs().gather(2, found.canvases[2][..., None])
    torch.testing.assert_close(steps[:, 1], wanted.sum((1, 2)))
    assert steps.shape == (16, 3)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="temperature"):
        Recorded(base=Unmask(process=PROCESS, order=random_order, temperature=0.5))
    with pytest.raises(TypeError, match="Unmask"):
        Recorded(base=MaskGIT(process=PROCESS))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="transition"):
        path(MaskGIT(process=PROCESS), PaddedChain(4), torch.full((1, 2), 3), num_steps=2, rng=Rng(0))
