"""Tree search: exact fronts and areas, and a better set of trade-offs than as many samples give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask import Denoiser, Rng, sample
from unmask.guidance.tree_search import TreeSearch, hypervolume, pareto_front
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


@pytest.mark.slow
def test_a_tree_beats_as_many_samples() -> None:
    """Mean hypervolume of 3 x 16 trees, against the best of samples that cost at least as many rows of the network."""
    denoiser, gains = Counted(world()[1]), []
    search = TreeSearch(sampler=SAMPLER, num_rounds=30, num_children=4, exploration=0.5)
    for seed in (0, 1, 2):
        trees, samples = [], []
        for index in range(16):
            found = search.search(denoiser, rewards, (1, LENGTH), num_steps=6, rng=Rng(seed).fold(index))
            trees.append(hypervolume(found.rewards))
            denoiser.rows, drawn = 0, torch.zeros(0, LENGTH, dtype=torch.int64)
            while denoiser.rows < found.rows_evaluated:
                more = sample(SAMPLER, denoiser, (4, LENGTH), num_steps=6, rng=Rng(seed).fold(index, len(drawn)))
                assert isinstance(more, Tensor)
                drawn = torch.cat([drawn, more])
            samples.append(hypervolume(rewards(drawn)))
        gains.append(sum(trees) / 16 - sum(samples) / 16)
        print(f"seed {seed}: tree {sum(trees) / 16:.3f}, samples {sum(samples) / 16:.3f}, about {len(drawn)} of them")
    assert sum(gains) / 3 > 0.02


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
