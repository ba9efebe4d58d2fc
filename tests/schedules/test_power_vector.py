import pytest
import torch
from torch import Tensor

from contracts import time
from unmask import time_grid
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
    plain, late = (share_of_balanced(brackets) for brackets in (1.0, power))
    print(plain, late)
    assert all(b > a + gain for a, b, gain in zip(plain, late, (0.05, 0.04, 0.02), strict=True))


def share_of_balanced(power: float) -> list[float]:
    """Of four tokens of a, b and brackets, all balanced strings alike but for a trace of others."""

    def balanced(x: Tensor) -> Tensor:
        depth = ((x == 2).long() - (x == 3).long()).cumsum(1)
        return (depth >= 0).all(1) & (depth[:, -1] == 0) & (x < 4).all(1)

    weights = balanced(enumerate_states(4, 4)).double() + 1e-4
    world = TinyJoint((weights / weights.sum()).reshape(4, 4, 4, 4))
    process = TokenMasked(vocab_size=5, mask_id=4, schedule=PowerVector(powers=(1.0, 1.0, power, power, 1.0)))
    denoiser, good = world.denoiser(process), balanced(enumerate_states(5, 4))
    transition = Ancestral(process=process).transition
    laws = (world.sampler_law(transition, denoiser, process, time_grid(steps)) for steps in (2, 4, 8))
    return [float(law[good].sum()) for law in laws]
