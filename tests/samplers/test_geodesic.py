import pytest
import torch
from torch import Tensor

from contracts import PaddedVectors, StateContract
from unmask import Categorical, Denoiser, Law, Normal, Rng, Sampler, State, sample
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TinyJoint, state_index
from unmask.processes.sphere import Sphere
from unmask.samplers.geodesic import GeodesicWalk


class ExactSphere(Denoiser):
    """p(x_0^i | x_t) of a tiny joint law, by enumeration."""

    def __init__(self, world: TinyJoint, process: Sphere) -> None:
        super().__init__()
        self.world, self.process = world, process

    def forward(self, xt: State, t: Tensor, **cond: object) -> Law:
        assert isinstance(xt, Tensor)
        world, site = self.world, torch.arange(self.world.length)
        evidence = self.process.evidence(xt, t)
        weights = (world.probs.log() + evidence[:, site, world.sequences].sum(-1)).softmax(1)
        probs = torch.zeros(*xt.shape, dtype=torch.float64)
        index = world.sequences.T[None].expand(len(xt), -1, -1)
        return Categorical.from_logits(probs.scatter_add(2, index, weights[:, None].expand(-1, world.length, -1)).log())


@pytest.mark.parametrize(("v", "length"), [(3, 2), (8, 1), pytest.param(5, 2, marks=pytest.mark.slow)])
def test_the_exact_posterior_returns_the_data_law_as_steps_grow(v: int, length: int) -> None:
    world, process, n = TinyJoint.random(v, length, seed=3), Sphere(vocab_size=v), 8_000
    far = []
    for steps in (2, 8, 40):
        out = sample(
            GeodesicWalk(process=process), ExactSphere(world, process), (n, length, v), num_steps=steps, rng=Rng(1)
        )
        assert isinstance(out, Tensor)
        found = state_index(out.argmax(-1), v).bincount(minlength=len(world.probs)).double() / n
        far.append(total_variation(found, world.probs))
    print(f"v = {v}, length {length}: {far}")
    assert far[1] > 1.8 * far[2], "shrinks with the step"
    assert length == 1 or far[0] > 1.8 * far[1]
    assert far[2] < 0.02


class TestContract(StateContract):
    def make(self) -> tuple[Sampler, Denoiser]:
        return GeodesicWalk(process=Sphere(vocab_size=3)), PaddedVectors(3)

    def shape(self, rows: int, length: int) -> tuple[int, ...]:
        return (rows, length, 3)


def test_ends_on_one_hot_vectors() -> None:
    process = Sphere(vocab_size=3)
    sampler, model = GeodesicWalk(process=process), ExactSphere(TinyJoint.random(3, 2, seed=1), process)
    out = sample(sampler, model, (4, 2, 3), num_steps=3, rng=Rng(2))
    assert isinstance(out, Tensor)
    assert torch.equal(out.sum(-1), torch.ones(4, 2))
    assert torch.equal(out.amax(-1), torch.ones(4, 2))

    class Point(Denoiser):
        def forward(self, xt: State, t: Tensor, **cond: object) -> Law:
            return Normal(torch.zeros(1, 1, 3), torch.ones(1))

    with pytest.raises(TypeError, match="Normal"):
        sample(sampler, Point(), (1, 1, 3), num_steps=1, rng=Rng(0))
