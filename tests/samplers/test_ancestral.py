import math

import pytest
import torch

from contracts import SamplerContract, standard_errors
from helpers import CountingHead
from unmask import Rng, sample, time_grid, trajectory
from unmask.denoisers.masked import MaskedDenoiser
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TinyJoint
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral

PROCESS = Masked(vocab_size=4, mask_id=3)


class TestAncestral(SamplerContract):
    def make(self) -> tuple[Ancestral, Masked]:
        return Ancestral(process=PROCESS), PROCESS


class TestFiltered(SamplerContract):
    """Temperature, top-k and top-p keep every invariance, and the recursion knows their law."""

    def make(self) -> tuple[Ancestral, Masked]:
        return Ancestral(process=PROCESS, temperature=0.7, top_k=2, top_p=0.8), PROCESS


def test_converges_to_the_models_law_at_first_order() -> None:
    world = TinyJoint.random(3, 3, seed=5)
    target, sampler = world.as_states(PROCESS), Ancestral(process=PROCESS)
    errors = [
        total_variation(world.sampler_law(sampler.transition, world.denoiser(PROCESS), PROCESS, time_grid(n)), target)
        for n in (8, 64, 512)
    ]
    assert errors[0] > 0.01, "the world is too easy to see an error"
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.1)
    assert errors[2] < 1e-3


def test_an_independent_world_needs_one_step() -> None:
    table = torch.outer(torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.1, 0.6, 0.3]))
    world = TinyJoint(table)
    law = world.sampler_law(Ancestral(process=PROCESS).transition, world.denoiser(PROCESS), PROCESS, time_grid(1))
    assert total_variation(law, world.as_states(PROCESS)) < 1e-7


@pytest.mark.parametrize(("length", "num_steps"), [(16, 16), (64, 16), (8, 64)])
def test_network_calls_are_as_predicted(length: int, num_steps: int) -> None:
    """Expected calls T (1 - (1 - 1/T)^L): the network is not asked when no position was drawn."""
    denoiser = MaskedDenoiser(CountingHead(vocab_size=6), vocab_size=6, mask_id=5)
    sampler = Ancestral(process=Masked(vocab_size=6, mask_id=5))
    calls = []
    for seed in range(24):
        *_, last = trajectory(sampler, denoiser, torch.full((1, length), 5), time_grid(num_steps), rng=Rng(seed))
        calls.append(last.network_calls)
    expected = num_steps * (1 - (1 - 1 / num_steps) ** length)
    assert abs(standard_errors(torch.tensor(calls).double(), expected)) < 5.3
    assert math.ceil(expected) <= num_steps


def test_the_head_is_evaluated_once_per_drawn_token() -> None:
    net = CountingHead(vocab_size=6)
    sampler = Ancestral(process=Masked(vocab_size=6, mask_id=5))
    sample(sampler, MaskedDenoiser(net, vocab_size=6, mask_id=5), (4, 30), num_steps=10, rng=Rng(0))
    assert net.rows_seen == 4 * 30


def test_temperature_zero_is_the_most_probable_value_and_scores_stay_the_models() -> None:
    net = CountingHead(vocab_size=6)
    process = Masked(vocab_size=6, mask_id=5)
    denoiser = MaskedDenoiser(net, vocab_size=6, mask_id=5)
    *_, last = trajectory(
        Ancestral(process=process, temperature=0.0), denoiser, torch.full((2, 9), 5), time_grid(1), rng=Rng(0)
    )
    logits = net.head(net.table[5][None])[0, :5]
    assert bool((last.canvas == int(logits.argmax())).all())
    best = float(logits.log_softmax(0).max())
    torch.testing.assert_close(last.commit_log_prob, torch.full((2, 9), best))


def test_filters_act_on_the_law_of_the_values() -> None:
    """One step from all masks: the product of the tempered, or truncated, marginals."""
    world = TinyJoint.random(3, 2, seed=5)
    marginals = world.conditionals(PROCESS, torch.tensor([[3, 3]]), time_grid(1)[:1])[0]

    def law(**filters: float) -> torch.Tensor:
        sampler = Ancestral(process=PROCESS, **filters)  # type: ignore[arg-type]
        return world.sampler_law(sampler.transition, world.denoiser(PROCESS), PROCESS, time_grid(1))

    def product(sites: torch.Tensor) -> torch.Tensor:
        sites = sites / sites.sum(1, keepdim=True)
        return torch.outer(sites[0], sites[1]).flatten()

    torch.testing.assert_close(law(temperature=0.5), product(marginals**2))
    kept = marginals >= marginals.topk(2, dim=1).values[:, 1:]
    torch.testing.assert_close(law(top_k=2), product(marginals * kept))
    assert not torch.allclose(law(), law(top_p=0.3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Ancestral(process=PROCESS, **wrong)  # type: ignore[arg-type]
