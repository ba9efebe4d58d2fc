"""Likelihood estimators against exact enumeration, with stated errors that hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import CountingHead, padded
from unmask.denoiser import Denoiser
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.law import Categorical, State
from unmask.loops import time_grid
from unmask.metrics.estimators import Estimator, FiniteSteps, LeftToRight, LowDiscrepancyTime, UniformTime
from unmask.metrics.likelihood import Likelihood, log_likelihood
from unmask.metrics.mask_estimators import ContextGain, ExactBound, StratifiedMasks
from unmask.ops import one_hot
from unmask.oracles.markov_text import MarkovText
from unmask.oracles.tiny_joint import TableDenoiser, TinyJoint, state_index
from unmask.process import DiscreteProcess, Interpolating
from unmask.processes.masked import Masked
from unmask.processes.product import Product
from unmask.rng import Rng
from unmask.samplers.ancestral import Ancestral
from unmask.schedule import Schedule
from unmask.schedules.linear import Linear
from unmask.schedules.polynomial import Polynomial

WORLD = TinyJoint.random(3, 4, seed=1)
MASKED = Masked(vocab_size=4, mask_id=3, schedule=Polynomial(power=2.0))
SAMPLED = [UniformTime(), LowDiscrepancyTime(), StratifiedMasks(), ContextGain()]


@dataclass(frozen=True, kw_only=True)
class Uniform(Interpolating):
    """Noise that replaces tokens by uniform ones: nothing that is masked."""

    vocab_size: int
    schedule: Schedule = field(default_factory=Linear)

    def mixing(self, t: Tensor) -> Tensor:
        return torch.full((self.vocab_size,), 1.0 / self.vocab_size, dtype=torch.float64, device=t.device)


class Tempered(Denoiser):
    """A wrong model: the exact conditionals flattened, differently at every site."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
        assert isinstance(xt, Tensor)
        log_probs = self.inner(xt, t).log_probs()
        power = torch.linspace(0.4, 0.8, log_probs.shape[1], dtype=torch.float64)[:, None]
        return Categorical.from_logits(log_probs.clamp(min=-1e3) * power)


def wrong_model() -> Denoiser:
    return Tempered(WORLD.denoiser(MASKED))


def repeated(x: Tensor, times: int, **options: Any) -> Likelihood:
    """One example many times, as rows with draws of their own."""
    options.setdefault("denoiser", wrong_model())
    return log_likelihood(process=options.pop("process", MASKED), x=x.expand(times, -1), rng=Rng(5), **options)


def z_score(found: Likelihood, truth: Tensor) -> float:
    return float((found.log_prob.mean() - truth) / (found.log_prob.std() / math.sqrt(len(found.log_prob))))


# -- against enumeration -----------------------------------------------------------------------------------------------


def test_the_exact_bound_is_the_mean_over_all_orders() -> None:
    x, model = WORLD.sample(1, Rng(0)), wrong_model()
    orders = list(permutations(range(4)))
    total = 0.0
    for order in orders:
        for step, site in enumerate(order):
            xt = x.clone()
            xt[:, list(order[step:])] = 3
            total += float(model(xt, torch.ones(1).double()).log_probs()[0, site, x[0, site]])
    found = log_likelihood(model, MASKED, x, rng=Rng(0), estimator=ExactBound())
    assert float(found.log_prob) == pytest.approx(total / len(orders), abs=1e-9)
    assert (found.num_calls, found.kind, float(found.standard_error)) == (15, "bound", 0.0)


@pytest.mark.parametrize("estimator", SAMPLED, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("num_calls", [4, 11])
def test_every_estimator_has_the_exact_bound_as_its_mean(estimator: Estimator, num_calls: int) -> None:
    for row in range(2):
        x = WORLD.sample(2, Rng(0))[row : row + 1]
        truth = log_likelihood(wrong_model(), MASKED, x, rng=Rng(0), estimator=ExactBound())
        found = repeated(x, 4000, estimator=estimator, num_calls=num_calls)
        assert found.num_calls == num_calls
        assert abs(z_score(found, truth.log_prob)) < 5
        assert float(found.log_prob.std()) < 4  # a wide law would pass anything
        share = found.token_log_prob.mean(0) - truth.token_log_prob[0]
        error = found.token_log_prob.std(0) / math.sqrt(4000)
        assert bool((share.abs() < 5 * error + 1e-9).all())


@pytest.mark.parametrize("num_calls", [3, 9])
def test_unequal_lengths_in_one_batch_stay_unbiased(num_calls: int) -> None:
    full = WORLD.sample(3, Rng(2))
    real = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])

    class Short(Tempered):
        """Padding shows as the mask to the table, whatever stands there."""

        def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
            assert isinstance(xt, Tensor)
            assert attention_mask is not None
            return super().forward(xt.masked_fill(~attention_mask, 3), torch.full_like(t, 0.5))

    model = Short(WORLD.denoiser(MASKED))
    truth = log_likelihood(model, MASKED, full, rng=Rng(0), estimator=ExactBound(), attention_mask=real)
    for row in range(3):
        alone = log_likelihood(
            model, MASKED, full[row : row + 1], rng=Rng(0), estimator=ExactBound(), attention_mask=real[row : row + 1]
        )
        assert float(alone.log_prob) == pytest.approx(float(truth.log_prob[row]), abs=1e-9)
    found = log_likelihood(
        model,
        MASKED,
        full.repeat(3000, 1),
        rng=Rng(1),
        estimator=ContextGain(),
        num_calls=num_calls,
        attention_mask=real.repeat(3000, 1),
    )
    values = found.log_prob.reshape(3000, 3)
    error = values.std(0) / math.sqrt(3000)
    assert bool(((values.mean(0) - truth.log_prob).abs() < 5 * error + 1e-6).all())


def test_the_exact_denoiser_gives_the_exact_likelihood_and_a_wrong_one_less() -> None:
    states = WORLD.sequences
    exact = log_likelihood(WORLD.denoiser(MASKED), MASKED, states, rng=Rng(0), estimator=ExactBound())
    torch.testing.assert_close(exact.log_prob, WORLD.log_prob(states), rtol=0, atol=1e-9)
    wrong = log_likelihood(wrong_model(), MASKED, states, rng=Rng(0), estimator=ExactBound())
    cross_entropy = -float(WORLD.probs @ wrong.log_prob)
    assert cross_entropy > WORLD.entropy + 0.05


@pytest.mark.parametrize("leak", [0.0, 0.5])
def test_any_process_has_the_bound_with_its_prior_term(leak: float) -> None:
    process = Uniform(vocab_size=3, schedule=Leaky(leak))
    x, denoiser = WORLD.sample(2000, Rng(3)), WORLD.denoiser(process)
    found = log_likelihood(denoiser, process, x, rng=Rng(0), num_calls=8)
    assert found.estimator == LowDiscrepancyTime()
    cost = WORLD.log_prob(x) - found.log_prob
    assert abs(float(cost.mean()) - gap(process)) < 5 * float(cost.std()) / math.sqrt(len(x))
    free = log_likelihood(denoiser, Free(vocab_size=3, schedule=Leaky(leak)), x, rng=Rng(0), num_calls=8)
    kept, lost = leak + (1 - leak) / 3, (1 - leak) / 3
    prior = 4 * (kept * math.log(3 * kept) + 2 * lost * math.log(3 * lost))
    torch.testing.assert_close(free.log_prob - found.log_prob, torch.full((2000,), prior, dtype=torch.float64))


class Free(Uniform):
    """The same process, its prior term left out."""

    def prior_kl(self, x0: Tensor) -> Tensor:
        return torch.zeros(x0.shape, dtype=torch.float64)


@dataclass(frozen=True)
class Leaky(Schedule):
    """Keeps the share `left` of the data at t = 1."""

    left: float

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - (1.0 - self.left) * t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.left - 1.0)


def gap(process: DiscreteProcess) -> float:
    """KL(q(x_1) || prior), what the bound of the exact denoiser loses in expectation by starting from the prior."""
    one = torch.tensor(1.0, dtype=torch.float64)
    rows = process.marginal(torch.eye(3, dtype=torch.float64), one)
    joint = torch.zeros(3**4, dtype=torch.float64)
    for weight, sequence in zip(WORLD.probs, WORLD.sequences, strict=True):
        law = torch.ones(1, dtype=torch.float64)
        for token in sequence.tolist():
            law = (law[:, None] * rows[token]).flatten()
        joint += weight * law
    return float((joint * (joint * 3**4).log()).sum())


@pytest.mark.parametrize("process", [MASKED, Uniform(vocab_size=3)], ids=["masked", "uniform"])
def test_finite_steps_bound_the_law_of_the_sampler(process: DiscreteProcess) -> None:
    x, denoiser = WORLD.sample(2000, Rng(4)), WORLD.denoiser(process)
    costs = []
    for num_steps in (1, 3, 9):
        found = log_likelihood(
            denoiser, process, x, rng=Rng(1), estimator=FiniteSteps(num_steps=num_steps), num_calls=9
        )
        assert found.law == f"sampler with {num_steps} steps"
        sampler = Ancestral(process=process)
        law = WORLD.sampler_law(sampler.transition, denoiser, process, time_grid(num_steps))
        gap = law[state_index(x, process.vocab_size)].log() - found.log_prob
        assert float(gap.mean()) > -5 * float(gap.std()) / math.sqrt(len(x)) - 1e-9
        if num_steps == 1:  # one step draws the sites independently: the bound is the sampler's exact likelihood
            assert float(gap.mean()) == pytest.approx(0.0, abs=5 * float(gap.std()) / math.sqrt(len(x)) + 1e-6)
        costs.append(-float(found.log_prob.mean()))
    assert costs[0] > costs[1] > costs[2] > WORLD.entropy - 0.05


def test_left_to_right_is_exact() -> None:
    head = CountingHead(4)
    denoiser = AutoregressiveDenoiser(head, vocab_size=4, bos_id=0, forbidden=3)
    x = WORLD.sample(5, Rng(0))
    found = log_likelihood(denoiser, MASKED, x, rng=Rng(0))
    torch.testing.assert_close(found.log_prob, denoiser(x, torch.zeros(5)).log_prob(x).double())
    assert (found.kind, found.num_calls, found.estimator) == ("exact", 1, LeftToRight())
    assert bool((found.standard_error == 0).all())


# -- variance ----------------------------------------------------------------------------------------------------------


def chain() -> tuple[Denoiser, Masked, Tensor]:
    world, process = MarkovText.random(8, seed=0), Masked(vocab_size=9, mask_id=8)
    return world.denoiser(process), process, world.sample(4, 64, Rng(1))


@pytest.mark.parametrize("estimator", SAMPLED[1:], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("num_calls", [7, 16])
def test_the_stated_variance_is_that_of_repetitions(estimator: Estimator, num_calls: int) -> None:
    found = repeated(WORLD.sample(2, Rng(0))[1:], 3000, estimator=estimator, num_calls=num_calls)
    assert 0.85 < float(found.standard_error.square().mean() / found.log_prob.var()) < 1.15


@pytest.mark.parametrize("num_calls", [16, 33])
def test_the_stated_standard_error_is_calibrated(num_calls: int) -> None:
    denoiser, process, x = chain()
    truth = MarkovText.random(8, seed=0).log_prob(x)
    found = log_likelihood(denoiser, process, x.repeat(100, 1), rng=Rng(5), num_calls=num_calls)
    inside = (found.log_prob.reshape(100, 4) - truth).abs() < 2 * found.standard_error.reshape(100, 4)
    assert 0.87 < float(inside.double().mean()) < 0.99  # 0.91 for normal replicates; 400 are good to 0.014


def test_the_default_needs_at_most_a_quarter_of_the_calls() -> None:
    denoiser, process, x = chain()
    variance = {}
    for estimator in (UniformTime(), StratifiedMasks(), None):
        found = log_likelihood(denoiser, process, x.repeat(60, 1), rng=Rng(2), estimator=estimator, num_calls=16)
        variance[type(found.estimator)] = float(found.log_prob.reshape(60, 4).var(0).mean())
    assert variance[ContextGain] < 0.8 * variance[StratifiedMasks]
    assert variance[StratifiedMasks] < 0.7 * variance[UniformTime]
    assert variance[ContextGain] < 0.2 * variance[UniformTime]


def test_a_model_without_context_is_scored_without_error() -> None:
    head = CountingHead(9)
    denoiser = MaskedDenoiser(head, vocab_size=9, mask_id=8)
    x = chain()[2]
    found = log_likelihood(denoiser, Masked(vocab_size=9, mask_id=8), x, rng=Rng(0), num_calls=5)
    assert float(found.standard_error.max()) < 1e-4
    assert head.calls == found.num_calls == 5


def test_the_head_sees_masked_sites_only() -> None:
    head = CountingHead(9)
    denoiser = MaskedDenoiser(head, vocab_size=9, mask_id=8)
    for estimator in (*SAMPLED, FiniteSteps(num_steps=4)):
        head.rows_seen = head.masks_seen = 0
        log_likelihood(denoiser, Masked(vocab_size=9, mask_id=8), chain()[2], rng=Rng(0), estimator=estimator)
        assert 0 < head.rows_seen == head.masks_seen


# -- invariance and units ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [*SAMPLED, FiniteSteps(num_steps=5)], ids=lambda e: type(e).__name__)
def test_batch_and_padding_change_nothing(estimator: Estimator) -> None:
    denoiser = MaskedDenoiser(CountingHead(4), vocab_size=4, mask_id=3)
    x = WORLD.sample(3, Rng(6))
    options: dict[str, Any] = {"estimator": estimator, "num_calls": 6}
    together = log_likelihood(denoiser, MASKED, x, rng=Rng(1), **options)
    alone = log_likelihood(denoiser, MASKED, x[2:], rng=Rng(1).rows(torch.tensor([2])), **options)
    torch.testing.assert_close(alone.log_prob, together.log_prob[2:])
    for left, right in ((0, 3), (2, 0)):
        tokens, mask = padded(x, left, right)
        found = log_likelihood(denoiser, MASKED, tokens, rng=Rng(1), attention_mask=mask, **options)
        torch.testing.assert_close(found.log_prob, together.log_prob)
        torch.testing.assert_close(found.standard_error, together.standard_error)
        assert bool(found.token_log_prob[~mask].isnan().all())
        torch.testing.assert_close(found.token_log_prob[mask].reshape(3, 4), together.token_log_prob)
        assert found.num_tokens.tolist() == [4, 4, 4]


def test_shares_sum_to_the_total_and_units_to_bits() -> None:
    found = log_likelihood(wrong_model(), MASKED, WORLD.sample(50, Rng(0)), rng=Rng(0), num_calls=8)
    torch.testing.assert_close(found.token_log_prob.sum(1), found.log_prob)
    nats = -float(found.log_prob.sum())
    total, tokens, characters = found.total(), found.bits_per_token(), found.bits_per_character([8] * 50)
    assert total.value == pytest.approx(nats)
    assert total.standard_error == pytest.approx(float(found.standard_error.square().sum().sqrt()))
    assert total.spread == pytest.approx(float(found.log_prob.std()) * math.sqrt(50))
    assert tokens.value == pytest.approx(nats / math.log(2) / 200)
    assert tokens.spread == pytest.approx(total.spread / math.log(2) / 200)
    assert characters.value == pytest.approx(tokens.value / 2)
    assert characters.standard_error == pytest.approx(tokens.standard_error / 2)
    assert "bits per character" in str(characters)
    with pytest.raises(ValueError, match="one count for each of the 50"):
        found.bits_per_character([8])


def test_an_impossible_token_costs_infinity() -> None:
    law = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    denoiser = TableDenoiser(lambda xt, t: torch.where((xt == 3)[..., None], law, one_hot(xt, 4)))
    found = log_likelihood(denoiser, MASKED, torch.tensor([[2, 0], [1, 0]]), rng=Rng(0), num_calls=8)
    assert found.log_prob.tolist() == [-math.inf, pytest.approx(math.log(1 / 4))]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_pairs_that_do_not_fit_are_refused_by_name() -> None:
    uniform = Uniform(vocab_size=3)
    causal = AutoregressiveDenoiser(CountingHead(4), vocab_size=4, bos_id=0)
    x = WORLD.sample(2, Rng(0))
    cases: list[tuple[Any, Any, Estimator | None, str]] = [
        (WORLD.denoiser(uniform), uniform, ContextGain(), "ContextGain .*Uniform; use LowDiscrepancyTime"),
        (WORLD.denoiser(uniform), uniform, ExactBound(), "ExactBound .*Uniform"),
        (wrong_model(), MASKED, LeftToRight(), "LeftToRight .*Tempered"),
        (causal, MASKED, ContextGain(), "ContextGain .*use LeftToRight"),
        (causal, MASKED, UniformTime(), "UniformTime .*use LeftToRight"),
        (wrong_model(), Product(columns={"a": MASKED}), None, "Product process has no bound on tokens"),
    ]
    for denoiser, process, estimator, message in cases:
        with pytest.raises(ValueError, match=message):
            log_likelihood(denoiser, process, x, rng=Rng(0), estimator=estimator)


def test_bad_input_is_told() -> None:
    x = WORLD.sample(2, Rng(0))
    with pytest.raises(ValueError, match="num_calls=2, but ContextGain needs at least 3"):
        log_likelihood(wrong_model(), MASKED, x, rng=Rng(0), num_calls=2)
    with pytest.raises(ValueError, match="row 1 holds the mask"):
        log_likelihood(wrong_model(), MASKED, torch.tensor([[0, 1, 2, 0], [0, 1, 3, 0]]), rng=Rng(0))
    with pytest.raises(ValueError, match="2\\^13 masks"):
        log_likelihood(wrong_model(), MASKED, torch.zeros(1, 13).long(), rng=Rng(0), estimator=ExactBound())
    with pytest.raises(TypeError, match="columns"):
        log_likelihood(wrong_model(), MASKED, {"a": x}, rng=Rng(0))
    with pytest.raises(ValueError, match="num_steps=0"):
        FiniteSteps(num_steps=0)
