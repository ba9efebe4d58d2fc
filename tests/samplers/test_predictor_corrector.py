from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from contracts import FALSE_ALARM, SamplerContract
from ctmc_worlds import changes_shown, grid, start_law
from helpers import CountingHead
from unmask import Rng, Sampler, sample, time_grid, trajectory
from unmask.correctors import ForwardBackward, Gibbs
from unmask.denoisers.masked import MaskedDenoiser
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TinyJoint, draw_states, enumerate_states, mix_products, state_index
from unmask.process import DiscreteProcess
from unmask.processes.gidd import GIDD
from unmask.processes.masked import Masked
from unmask.processes.matrix import GaussianRates, Matrix
from unmask.processes.multi_mask import MultiMask
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.distilled_leaping import DistilledLeaping
from unmask.samplers.euler import Euler
from unmask.samplers.first_hitting import FirstHitting
from unmask.samplers.predictor_corrector import PredictorCorrector

MASKED = Masked(vocab_size=4, mask_id=3)
UNIFORM = Uniform(vocab_size=3)
KINDS: list[DiscreteProcess] = [
    MASKED,
    UNIFORM,
    GIDD(vocab_size=4, mask_id=3, p_uniform=0.3),
    Matrix(generator=GaussianRates(vocab_size=3, width=0.5)),
]
NAMES = ["masked", "uniform", "gidd", "matrix"]
WORLD = TinyJoint.random(3, 3, seed=5)


class TestForwardBackward(SamplerContract):
    def make(self) -> tuple[Sampler, DiscreteProcess]:
        corrector = ForwardBackward(process=UNIFORM)
        return PredictorCorrector(predictor=Ancestral(process=UNIFORM), corrector=corrector), UNIFORM


class TestForwardBackwardOnMasks(SamplerContract):
    def make(self) -> tuple[Sampler, DiscreteProcess]:
        corrector = ForwardBackward(process=MASKED)
        return PredictorCorrector(predictor=Ancestral(process=MASKED), corrector=corrector), MASKED


class TestGibbs(SamplerContract):
    def make(self) -> tuple[Sampler, DiscreteProcess]:
        corrector = Gibbs(process=UNIFORM, num_sites=2)
        return PredictorCorrector(predictor=Ancestral(process=UNIFORM), corrector=corrector, num_corrections=2), UNIFORM


class TestGibbsOnMasks(SamplerContract):
    def make(self) -> tuple[Sampler, DiscreteProcess]:
        return PredictorCorrector(predictor=Ancestral(process=MASKED), corrector=Gibbs(process=MASKED)), MASKED


def gibbs_kernel(corrector: Gibbs, x: Tensor, s: Tensor) -> Tensor:
    """The law of all states (n, k) after one site, any with the same chance, was drawn anew."""
    v = corrector.process.vocab_size
    kernel, denoiser = torch.zeros(len(x), v ** x.shape[1], dtype=torch.float64), WORLD.denoiser(corrector.process)
    for i in range(x.shape[1]):
        where = torch.zeros_like(x, dtype=torch.bool)
        where[:, i] = True
        law = corrector.conditionals(denoiser, x, s.expand(len(x)), where)
        for y in range(v):
            to = x.clone()
            to[:, i] = y
            kernel[torch.arange(len(x)), state_index(to, v)] += law[:, y] / x.shape[1]
    return kernel


@pytest.mark.parametrize("process", KINDS, ids=NAMES)
def test_correctors_keep_the_law_of_the_noisy_state(process: DiscreteProcess) -> None:
    """Gibbs exactly; the flow into and out of every state under both rates cancels."""
    states, s = enumerate_states(process.vocab_size, 3), torch.tensor(0.4, dtype=torch.float64)
    law = WORLD.noised(process, float(s))
    x, p = states[law > 0], law[law > 0]
    torch.testing.assert_close(p @ gibbs_kernel(Gibbs(process=process), x, s), law, atol=1e-12, rtol=0)
    rows, one = s.expand(len(x)), torch.ones(len(x), dtype=torch.float64)
    leap = ForwardBackward(process=process).transition(WORLD.denoiser(process), x, rows, one)
    rates = leap.jumps.at(torch.ones_like(x, dtype=torch.bool)).reshape(len(x), 3, -1)
    flow = -mix_products(p * rates.sum((1, 2)), torch.nn.functional.one_hot(x, process.vocab_size).double())
    for i in range(3):
        for y in range(process.vocab_size):
            to = x.clone()
            to[:, i] = y
            flow.index_add_(0, state_index(to, process.vocab_size), p * rates[:, i, y])
    torch.testing.assert_close(flow, torch.zeros_like(flow), atol=1e-12, rtol=0)


@pytest.mark.parametrize("process", KINDS, ids=NAMES)
def test_gibbs_draws_from_the_conditional_given_the_other_sites(process: DiscreteProcess) -> None:
    s, v = torch.tensor(0.4, dtype=torch.float64), process.vocab_size
    law = WORLD.noised(process, float(s))
    x, where = enumerate_states(v, 3)[law > 0], torch.tensor([False, True, False])
    others = x[:, None].repeat(1, v, 1)
    others[:, :, 1] = torch.arange(v)
    exact = law[state_index(others.flatten(0, 1), v)].reshape(len(x), v)
    sites = where.expand(x.shape).clone()
    got = Gibbs(process=process).conditionals(WORLD.denoiser(process), x, s.expand(len(x)), sites)
    torch.testing.assert_close(got, exact / exact.sum(1, keepdim=True), atol=1e-10, rtol=0)


def corrected_law(
    process: DiscreteProcess,
    corrector: Gibbs | ForwardBackward | None,
    steps: int | Sequence[float],
    num_corrections: int = 1,
) -> Tensor:
    """The exact output law of ancestral sampling with so many corrections a step."""
    states, denoiser, law = enumerate_states(process.vocab_size, 3), WORLD.denoiser(process), start_law(WORLD, process)
    for t, s in itertools.pairwise(grid(steps)):
        x = states[law > 0]
        rows = t.expand(len(x)), s.expand(len(x))
        step = Ancestral(process=process).transition(denoiser, x, *rows)
        law = mix_products(law[law > 0], step.log_probs().double().exp())  # type: ignore[attr-defined]
        for _ in range(num_corrections if s > 0 else 0):
            x, p = states[law > 0], law[law > 0]
            if isinstance(corrector, Gibbs):
                law = p @ gibbs_kernel(corrector, x, s)
            elif corrector is not None:
                rows = s.expand(len(x)), (t - s).expand(len(x))
                law = mix_products(p, corrector.transition(denoiser, x, *rows).log_probs().exp())
    return law


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
@pytest.mark.parametrize("num_steps", [4, 8])
def test_correctors_lower_the_error_at_few_steps(process: DiscreteProcess, num_steps: int) -> None:
    def error(corrector: Gibbs | ForwardBackward | None, n: int = num_steps) -> float:
        return total_variation(corrected_law(process, corrector, n), WORLD.as_states(process))

    plain, gibbs = error(None), error(Gibbs(process=process))
    assert gibbs < 0.8 * plain
    assert error(ForwardBackward(process=process, size=0.5)) < 0.95 * plain
    if process is MASKED:
        assert gibbs < 0.9 * error(None, 2 * num_steps), "at equal network calls"


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
@pytest.mark.parametrize("kind", [Gibbs, ForwardBackward])
def test_draws_have_the_law_of_the_recursion(
    process: DiscreteProcess, kind: type[Gibbs] | type[ForwardBackward]
) -> None:
    """Two corrections a step, whose draws are independent and whose length is the step's."""
    corrector, times = kind(process=process), [1.0, 0.6, 0.5]
    sampler = PredictorCorrector(predictor=Ancestral(process=process), corrector=corrector, num_corrections=2)
    exact = corrected_law(process, corrector, times, num_corrections=2)
    x = process.prior((50_000, 3), Rng(1))
    *_, last = trajectory(sampler, WORLD.denoiser(process), x, grid(times), rng=Rng(2))
    counts = state_index(last.canvas, process.vocab_size).bincount(minlength=len(exact))
    assert chi_square(counts, exact) > FALSE_ALARM


@pytest.mark.parametrize("process", KINDS, ids=NAMES)
def test_forward_backward_draws_the_law_that_it_scores(process: DiscreteProcess) -> None:
    corrector, n, s, v = ForwardBackward(process=process), 50_000, 0.5, process.vocab_size
    law = WORLD.noised(process, s)
    x = enumerate_states(v, 3)[draw_states(law, 1, Rng(0))].expand(n, 3)
    rows = torch.full((n,), s, dtype=torch.float64), torch.full((n,), 0.3, dtype=torch.float64)
    sites = corrector.transition(WORLD.denoiser(process), x[:1], rows[0][:1], rows[1][:1]).log_probs().exp()
    exact = mix_products(torch.ones(1, dtype=torch.float64), sites)
    everywhere = torch.ones_like(x, dtype=torch.bool)
    drawn, _ = corrector.correct(WORLD.denoiser(process), x, *rows, everywhere, Rng(4))
    assert chi_square(state_index(drawn, v).bincount(minlength=v**3), exact) > FALSE_ALARM


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
def test_fixed_tokens_are_shown_as_they_are(process: DiscreteProcess) -> None:
    """Though a corrector picks more sites than a row has."""
    for corrector in (Gibbs(process=process, num_sites=3), ForwardBackward(process=process)):
        sampler = PredictorCorrector(predictor=Ancestral(process=process), corrector=corrector, num_corrections=2)
        assert changes_shown(sampler, WORLD, process) == 0


def test_all_masks_that_are_set_again_are_told() -> None:
    masks = MultiMask(vocab_size=5, mask_id=3, num_masks=2)
    corrector = ForwardBackward(process=masks)
    sampler = PredictorCorrector(predictor=Ancestral(process=masks), corrector=corrector, num_corrections=2)
    before = masks.prior((64, 3), Rng(2))
    found = set()
    for event in trajectory(sampler, WORLD.denoiser(masks), before, time_grid(6), rng=Rng(3)):
        assert torch.equal(event.remasked, (event.canvas != before) & (event.canvas >= 3))
        found |= set(event.canvas[event.remasked].tolist())
        before = event.canvas
    assert found == {3, 4}


def test_asks_the_head_at_few_sites() -> None:
    net, process = CountingHead(vocab_size=50), Masked(vocab_size=50, mask_id=49)
    denoiser = MaskedDenoiser(net, vocab_size=50, mask_id=49)
    sampler = PredictorCorrector(
        predictor=Ancestral(process=process), corrector=Gibbs(process=process, num_sites=3), num_corrections=2
    )
    *_, last = trajectory(sampler, denoiser, torch.full((2, 100), 49), time_grid(10), rng=Rng(0))
    assert last.network_calls <= 10 + 2 * 9
    assert net.rows_seen <= 2 * 100 + 2 * 3 * 2 * 9 * 2, "reveals, and the few sites that are drawn anew"


def test_a_predictor_keeps_its_memory() -> None:
    sampler = PredictorCorrector(predictor=FirstHitting(process=MASKED), corrector=Gibbs(process=MASKED))
    drawn = sample(sampler, WORLD.denoiser(MASKED), (64, 3), num_steps=5, rng=Rng(1))
    assert isinstance(drawn, Tensor)
    assert bool((drawn < 3).all())


def test_refuses() -> None:
    with pytest.raises(ValueError, match="wanted the same"):
        PredictorCorrector(predictor=Ancestral(process=UNIFORM), corrector=Gibbs(process=MASKED))
    learned = DistilledLeaping(base=Euler(process=UNIFORM), times=(1.0, 0.0), factors=(1.0,))
    nested = PredictorCorrector(predictor=Ancestral(process=UNIFORM), corrector=Gibbs(process=UNIFORM))
    for predictor in (learned, nested):
        with pytest.raises(ValueError, match="wanted the same"):
            PredictorCorrector(predictor=predictor, corrector=Gibbs(process=MASKED))
    with pytest.raises(ValueError, match="at least one"):
        PredictorCorrector(predictor=Ancestral(process=UNIFORM), corrector=Gibbs(process=UNIFORM), num_corrections=0)
    with pytest.raises(ValueError, match="num_sites"):
        Gibbs(process=UNIFORM, num_sites=0)
    with pytest.raises(ValueError, match="size"):
        ForwardBackward(process=UNIFORM, size=0.0)
    masks = MultiMask(vocab_size=5, mask_id=3, num_masks=2)
    sampler = PredictorCorrector(predictor=Ancestral(process=masks), corrector=Gibbs(process=masks))
    with pytest.raises(ValueError, match="exclude some x_0"):
        sample(sampler, WORLD.denoiser(masks), (8, 3), num_steps=3, rng=Rng(1))
