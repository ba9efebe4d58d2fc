from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import time
from unmask import Denoiser, Rng, sample, time_grid
from unmask.law import Law, State
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states
from unmask.processes.token_masked import TokenMasked
from unmask.samplers.ancestral import Ancestral
from unmask.schedules.polynomial import Polynomial
from unmask.schedules.power_vector import LearnedPowerVector, PowerVector, TokenSchedule

GRID = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)[:, None]
TOKENS = torch.arange(3)


@pytest.mark.parametrize("schedule", [PowerVector(powers=(0.5, 1.0, 3.0)), LearnedPowerVector(3, initial=2.0)])
def test_every_token_follows_its_own_polynomial_schedule(schedule: TokenSchedule) -> None:
    powers = schedule.powers if isinstance(schedule, PowerVector) else schedule.powers.tolist()  # type: ignore[attr-defined]
    for token, power in enumerate(powers):
        scalar, own = Polynomial(power=power), torch.tensor(token)
        torch.testing.assert_close(schedule.alpha(GRID, own), scalar.alpha(GRID))
        torch.testing.assert_close(schedule.noise(GRID, own), scalar.noise(GRID))
        torch.testing.assert_close(schedule.hazard(GRID, own), -scalar.alpha_dot(GRID) / scalar.noise(GRID))


def test_slope_is_the_autodiff_slope() -> None:
    schedule = PowerVector(powers=(0.5, 1.0, 3.0))
    torch.testing.assert_close(schedule.hazard(GRID, TOKENS), TokenSchedule.hazard(schedule, GRID, TOKENS))


def test_the_autodiff_slope_has_a_gradient_for_learned_powers() -> None:
    schedule = LearnedPowerVector(3)
    for hazard in (schedule.hazard(GRID, TOKENS), TokenSchedule.hazard(schedule, GRID, TOKENS)):
        (slope,) = torch.autograd.grad(hazard.sum(), schedule.log_powers)
        torch.testing.assert_close(slope, (1 / GRID).sum().expand(3))


def test_the_ends_of_time_are_exact() -> None:
    schedule = PowerVector(powers=(0.01, 1.0, 50.0))
    assert schedule.alpha(time(0.0), TOKENS).tolist() == [1.0] * 3
    assert schedule.alpha(time(1.0), TOKENS).tolist() == [0.0] * 3
    near = schedule.alpha(time(1 - 2.0**-40), TOKENS) * 2.0**40
    torch.testing.assert_close(near, time(0.01, 1.0, 50.0), rtol=1e-9, atol=0)


def test_frozen_powers_are_the_learned_ones() -> None:
    schedule = LearnedPowerVector(3)
    schedule.log_powers.data = torch.tensor([-0.4, 0.0, 1.1], dtype=torch.float64)
    torch.testing.assert_close(schedule.frozen().noise(GRID, TOKENS), schedule.noise(GRID, TOKENS).detach())


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses(power: float) -> None:
    with pytest.raises(ValueError, match="power"):
        PowerVector(powers=(1.0, power))
    with pytest.raises(ValueError, match="power"):
        LearnedPowerVector(2, initial=power)


@pytest.mark.parametrize("power", [2.0, 3.0])
def test_structural_tokens_masked_late_make_more_strings_valid(power: float) -> None:
    """The exact share of balanced strings in 2, 4 and 8 factorised steps, with the exact denoiser."""
    plain, late = ([share_of_balanced(brackets, steps) for steps in (2, 4, 8)] for brackets in (1.0, power))
    print(plain, late)
    assert all(b > a + gain for a, b, gain in zip(plain, late, (0.05, 0.04, 0.02), strict=True))


def test_but_they_lift_masks_in_more_of_the_steps() -> None:
    """Two steps cost alike; eight ask about more rows, and are worth less, than twelve that mask all tokens alike.

    The rows asked about for a sample have a standard deviation below one: 4,000 samples tell.
    """
    plain, late = rows_of_a_sample(1.0, 2), rows_of_a_sample(2.0, 2)
    more, fewer = rows_of_a_sample(1.0, 12), rows_of_a_sample(2.0, 8)
    worth = share_of_balanced(1.0, 12), share_of_balanced(2.0, 8)
    print(f"rows in two steps {plain:.2f}, {late:.2f}; in twelve {more:.2f}, in eight {fewer:.2f}, worth {worth}")
    assert abs(late - plain) < 0.1
    assert more < fewer - 0.5
    assert worth[0] > worth[1]


def process_of(power: float) -> TokenMasked:
    """Letters a, b are masked linearly, brackets with probability t^power."""
    return TokenMasked(vocab_size=5, mask_id=4, schedule=PowerVector(powers=(1.0, 1.0, power, power, 1.0)))


def balanced(x: Tensor) -> Tensor:
    depth = ((x == 2).long() - (x == 3).long()).cumsum(1)
    return (depth >= 0).all(1) & (depth[:, -1] == 0) & (x < 4).all(1)


def world() -> TinyJoint:
    """Of four tokens of a, b and brackets, all balanced strings alike but for a trace of others."""
    weights = balanced(enumerate_states(4, 4)).double() + 1e-4
    return TinyJoint((weights / weights.sum()).reshape(4, 4, 4, 4))


def share_of_balanced(power: float, num_steps: int) -> float:
    process = process_of(power)
    transition = Ancestral(process=process).transition
    law = world().sampler_law(transition, world().denoiser(process), process, time_grid(num_steps))
    return float(law[balanced(enumerate_states(5, 4))].sum())


def rows_of_a_sample(power: float, num_steps: int) -> float:
    """A step that lifts no mask of a row does not ask about the row."""

    class Counted(Denoiser):
        def forward(self, xt: State, t: Tensor, **cond: Any) -> Law:
            nonlocal rows
            rows += len(t)
            law: Law = exact(xt, t, **cond)
            return law

    rows, process = 0, process_of(power)
    exact = world().denoiser(process)
    sample(Ancestral(process=process), Counted(), (4000, 4), num_steps=num_steps, rng=Rng(1))
    return rows / 4000
