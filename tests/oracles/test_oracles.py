"""The oracles are themselves checked, against brute force and against each other."""

import math

import pytest
import torch

from contracts import standard_errors, time
from unmask import Rng
from unmask.oracles.gaussian_mixture import GaussianMixture
from unmask.oracles.markov_text import MarkovText
from unmask.oracles.statistics import chi_square, kl_divergence, total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked


def test_tiny_joint_knows_its_law() -> None:
    world = TinyJoint.random(3, 3, seed=0)
    assert float(world.probs.sum()) == pytest.approx(1)
    x = world.sample(100_000, Rng(1))
    assert chi_square(state_index(x, 3).bincount(minlength=27), world.probs) > 1e-7
    assert abs(standard_errors(-world.log_prob(x), world.entropy)) < 5.3
    assert float(world.log_prob(torch.tensor([[0, 1, 7]]))) == -math.inf


def test_tiny_joint_conditionals_by_hand() -> None:
    """Two equal bits, the second one masked: it is known. Both masked: fair."""
    world, process = TinyJoint(torch.eye(2)), Masked(vocab_size=3, mask_id=2)
    probs = world.conditionals(process, torch.tensor([[1, 2], [2, 2]]), time(0.5, 0.5))
    assert probs[0, 1].tolist() == [0, 1, 0]
    torch.testing.assert_close(probs[1, 0], torch.tensor([0.5, 0.5, 0.0]).double())
    with pytest.raises(ValueError, match="probability zero"):
        world.conditionals(process, torch.tensor([[0, 1]]), time(0.5))


@pytest.mark.parametrize("table", [torch.zeros(2, 2), -torch.ones(2, 2), torch.ones(2, 3)])
def test_tiny_joint_refuses(table: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="wanted"):
        TinyJoint(table)


def test_markov_text_agrees_with_enumeration() -> None:
    chain, process = MarkovText.random(3, seed=2), Masked(vocab_size=4, mask_id=3)
    x = enumerate_states(3, 4)
    world = TinyJoint(chain.log_prob(x).exp().reshape(3, 3, 3, 3))
    assert float(chain.log_prob(x).exp().sum()) == pytest.approx(1)
    assert chain.entropy(4) == pytest.approx(world.entropy)
    xt = enumerate_states(4, 4)
    t = time(0.6).expand(len(xt))
    torch.testing.assert_close(chain.conditionals(process, xt, t), world.conditionals(process, xt, t))
    torch.testing.assert_close(chain.stationary @ chain.transitions, chain.stationary)
    drawn = chain.sample(100_000, 4, Rng(3))
    assert chi_square(state_index(drawn, 3).bincount(minlength=81), world.probs) > 1e-7


def test_markov_text_refuses_what_is_no_chain() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        MarkovText(torch.ones(2, 2))


def mixture() -> GaussianMixture:
    means = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, -2.0]]).double()
    return GaussianMixture(means=means, std=0.4, weights=torch.tensor([0.5, 0.3, 0.2]).double())


def test_gaussian_score_is_the_gradient_of_the_log_density() -> None:
    world, alpha, sigma = mixture(), time(0.8, 0.3), time(0.5, 1.1)
    xt = Rng(0).normal((2, 2)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(world.noised(2, alpha, sigma).log_prob(xt).sum(), xt)
    torch.testing.assert_close(world.score(xt, alpha, sigma), gradient)


def test_gaussian_posterior_is_bayes_and_tweedie() -> None:
    world, alpha, sigma, n = mixture(), time(0.8), time(0.5), 4
    x0, xt = Rng(1).normal((n, 2)), Rng(2).normal((n, 2))
    prior = world.noised(n, time(1.0), time(0.0)).log_prob(x0)
    noise = torch.distributions.Normal(alpha * x0, sigma).log_prob(xt).sum(1)
    bayes = prior + noise - world.noised(n, alpha, sigma).log_prob(xt)
    torch.testing.assert_close(world.posterior(xt, alpha, sigma).log_prob(x0), bayes)
    tweedie = (xt + sigma**2 * world.score(xt, alpha, sigma)) / alpha
    torch.testing.assert_close(world.posterior_mean(xt, alpha, sigma), tweedie)


def test_gaussian_draws_have_the_stated_density() -> None:
    world = mixture()
    x = world.sample(100_000, Rng(4))
    law = world.noised(len(x), time(1.0), time(0.0))
    torch.testing.assert_close(x.mean(0), law.mean[0], atol=0.03, rtol=0)
    inside = float((x[:, 0] > 0).double().mean())
    weights, centres = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([1.0, -1.0, 0.0])
    exact = float((weights * torch.special.ndtr(centres / 0.4)).sum())
    assert abs(inside - exact) < 5.3 * math.sqrt(0.25 / len(x))
    with pytest.raises(ValueError, match="std"):
        GaussianMixture(means=torch.zeros(1, 1), std=-1.0)


def test_chi_square_is_calibrated_and_sees_a_wrong_law() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05]).double()
    cdf = probs.cumsum(0)
    p_values = []
    for seed in range(400):
        counts = torch.searchsorted(cdf, Rng(seed).uniform((1000,))).bincount(minlength=4)
        p_values.append(chi_square(counts, probs))
    below = (torch.tensor(p_values) < 0.1).double().mean()
    assert abs(float(below) - 0.1) < 5.3 * math.sqrt(0.09 / 400)
    assert chi_square(torch.tensor([520, 310, 120, 50]) * 10, probs) < 1e-4
    assert chi_square(torch.tensor([1, 1]), torch.tensor([1.0, 0.0]).double()) == 0.0


def test_distances() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.25, 0.25, 0.5]).double()
    assert total_variation(p, q) == pytest.approx(0.5)
    assert kl_divergence(p, q) == pytest.approx(math.log(2))
    assert kl_divergence(q, p) == math.inf
