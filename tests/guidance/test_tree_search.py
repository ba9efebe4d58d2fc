"""Tree search: exact fronts and areas, and a better set of trade-offs than as many samples give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask import Denoiser, Rng, sample
from unmask.guidance.tree_search import TreeSearch, hypervolume, pareto_front
from unmask.law import Categorical
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral

LENGTH = 6
MASKED = Masked(vocab_size=5, mask_id=4)
SAMPLER = Ancestral(process=MASKED)


def valid(x: Tensor) -> Tensor:
    """Strings over a, b, (, ) whose brackets are balanced."""
    depth = ((x == 2).long() - (x == 3).long()).cumsum(1)
    return (depth >= 0).all(1) & (depth[:, -1] == 0)


def world() -> tuple[TinyJoint, Denoiser]:
    """Mostly balanced strings, those with more of b likelier: what is wanted is rare."""
    states = enumerate_states(4, LENGTH)
    weights = valid(states) * torch.exp(1.0 * (states == 1).double().sum(1)) + 1e-4
    joint = TinyJoint(weights.reshape((4,) * LENGTH) / weights.sum())
    return joint, joint.denoiser(MASKED)


def rewards(x: Tensor) -> Tensor:
    """The number of a's against the depth of the brackets: every bracket costs an a. Nothing for what is not valid."""
    depth = ((x == 2).long() - (x == 3).long()).cumsum(1).amax(1)
    return torch.stack([(x == 0).double().sum(1) / LENGTH, depth / 3], 1) * valid(x)[:, None]


class Counted(Denoiser):
    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, xt: Tensor, t: Tensor, **cond: object):  # type: ignore[no-untyped-def,override]
        self.rows += len(xt)
        return self.inner(xt, t, **cond)


def test_fronts_and_areas() -> None:
    points = torch.tensor([[1.0, 3.0], [2.0, 2.0], [2.0, 2.0], [1.0, 2.0], [3.0, 0.5], [0.0, 3.0]])
    assert pareto_front(points).tolist() == [True, True, False, False, True, False]
    assert hypervolume(points) == pytest.approx(3 * 0.5 + 2 * 1.5 + 1 * 1.0)
    assert hypervolume(points, reference=(1.0, 1.0)) == pytest.approx(1.0)


class Fair(Denoiser):
    """Four letters, equally likely everywhere."""

    def forward(self, xt: Tensor, t: Tensor, **cond: object) -> Categorical:  # type: ignore[override]
        known = (xt[..., None] == torch.arange(5)).double()
        return Categorical.from_logits(torch.where(xt[..., None] == 4, torch.tensor([0.25] * 4 + [0.0]), known).log())


@pytest.mark.slow
def test_a_tree_beats_as_many_samples() -> None:
    """Hypervolume of the shares of two letters of four in 16, which conflict: 3 x 16 trees, each against the best of
    samples that cost at least as many rows of the network. Threshold: five standard errors below the mean gain."""
    denoiser, gains = Counted(Fair()), []
    search = TreeSearch(sampler=SAMPLER, num_rounds=40, num_children=8, exploration=0.02)

    def shares(x: Tensor) -> Tensor:
        return torch.stack([(x == letter).double().mean(1) for letter in (0, 1)], 1)

    for seed in (31, 32, 33):
        trees, samples = [], []
        for index in range(16):
            denoiser.rows = 0
            found = search.search(denoiser, shares, (1, 16), num_steps=4, rng=Rng(seed).fold(index))
            trees.append(hypervolume(found.rewards))
            assert found.rows_evaluated == denoiser.rows
            denoiser.rows, drawn = 0, torch.zeros(0, 16, dtype=torch.int64)
            while denoiser.rows < found.rows_evaluated:
                more = sample(SAMPLER, denoiser, (8, 16), num_steps=4, rng=Rng(seed).fold(index, 1, len(drawn)))
                assert isinstance(more, Tensor)
                drawn = torch.cat([drawn, more])
            samples.append(hypervolume(shares(drawn)))
        gains += [tree - best for tree, best in zip(trees, samples, strict=True)]
        print(f"seed {seed}: tree {sum(trees) / 16:.3f}, samples {sum(samples) / 16:.3f}, about {len(drawn)} of them")
    gain = torch.tensor(gains)
    print(f"gain {gain.mean():.3f} +- {gain.std() / 48**0.5:.3f}")
    assert float(gain.mean()) > 0.015


def test_a_small_tree_is_searched_to_its_end() -> None:
    """One step of two children: two rounds would find nothing left to expand, and the search says what it found."""
    denoiser = Counted(Fair())
    search = TreeSearch(sampler=SAMPLER, num_rounds=50, num_children=2)
    found = search.search(denoiser, lambda x: (x == 0).double(), (1, 2), num_steps=2, rng=Rng(0))
    children, grandchildren = 2, 4
    assert denoiser.rows <= children * 2 + grandchildren
    assert found.rows_evaluated == denoiser.rows


def test_the_set_is_what_it_says_and_fixed_sites_stay() -> None:
    denoiser = Counted(world()[1])
    canvas, editable = torch.tensor([[4, 4, 2, 4, 4, 4]]), torch.tensor([[True, True, False, *[True] * 3]])
    search = TreeSearch(sampler=SAMPLER, num_rounds=6, num_children=4)
    found = search.search(denoiser, rewards, canvas, num_steps=4, rng=Rng(3), editable=editable)
    assert bool((found.x[:, 2] == 2).all())
    assert bool(valid(found.x).all())
    torch.testing.assert_close(found.rewards, rewards(found.x))
    assert bool(pareto_front(found.rewards).all())
    assert found.rows_evaluated == denoiser.rows
    again = search.search(denoiser, rewards, canvas, num_steps=4, rng=Rng(3), editable=editable)
    assert torch.equal(again.x, found.x)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="num_rounds=0"):
        TreeSearch(sampler=SAMPLER, num_rounds=0)
    with pytest.raises(ValueError, match="one row"):
        TreeSearch(sampler=SAMPLER, num_rounds=1).search(world()[1], rewards, (2, LENGTH), num_steps=2, rng=Rng(0))
    with pytest.raises(ValueError, match=r"came as \(8,\)"):
        TreeSearch(sampler=SAMPLER, num_rounds=1).search(
            world()[1], lambda x: rewards(x)[:, 0], (1, LENGTH), num_steps=2, rng=Rng(0)
        )
