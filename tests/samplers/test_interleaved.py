"""Interleaved Gibbs sampling recovers a mixed joint law, conditions on given elements, and solves clauses."""

from __future__ import annotations

import pytest
import torch

from contracts import StateContract
from interleaved_worlds import (
    CENTRES,
    JOINT,
    SPREAD,
    Exact,
    PaddedMixed,
    draw,
    exact_histogram,
    histogram,
    process,
)
from unmask import Carry, Denoiser, Rng, Sampler, sample
from unmask.denoisers.interleaved import InterleavedDenoiser
from unmask.oracles.statistics import total_variation
from unmask.processes.interleaved import TOKENS, VALUES
from unmask.samplers.interleaved import InterleavedSteps
from unmask.samplers.redenoise import redenoise

N = 8_000
SHAPE = {TOKENS: (N, 2), VALUES: (N, 1)}


def test_a_mixed_joint_law_is_recovered_as_substeps_grow() -> None:
    """Total variation over 64 cells; the last rounds leave 0.4 ** 8 of a token and 2 ** -8 of a number."""
    noise = process(8)
    denoiser = InterleavedDenoiser(Exact(noise), noise)
    errors = []
    for substeps, num_steps in ((1, 4), (4, 24), (16, 7)):  # a grid only groups the 24 visits
        sampler = InterleavedSteps(process=noise, num_substeps=substeps)
        drawn = sample(sampler, denoiser, SHAPE, num_steps=num_steps, rng=Rng(1))
        assert isinstance(drawn, dict)
        errors.append(total_variation(histogram(drawn), exact_histogram()))
    print(errors, "as many draws of the law itself:", total_variation(histogram(draw(N, Rng(2))), exact_histogram()))
    assert errors[0] > 3 * errors[1] > 7 * errors[2]
    assert errors[2] < 0.08


def test_given_elements_are_conditioned_on() -> None:
    """With the number given, the tokens follow their posterior."""
    noise = process(8)
    canvas = {TOKENS: torch.zeros(N, 2, dtype=torch.int64), VALUES: torch.full((N, 1), 0.5)}
    editable = {TOKENS: torch.ones(N, 2, dtype=torch.bool), VALUES: torch.zeros(N, 1, dtype=torch.bool)}
    sampler = InterleavedSteps(process=noise)
    drawn = sample(
        sampler, InterleavedDenoiser(Exact(noise), noise), canvas, num_steps=8, rng=Rng(3), editable=editable
    )
    assert isinstance(drawn, dict)
    assert torch.equal(drawn[VALUES], canvas[VALUES])
    law = JOINT.flatten() * torch.exp(-((0.5 - CENTRES.flatten()) ** 2) / (2 * SPREAD**2))
    counts = (drawn[TOKENS][:, 0] * 2 + drawn[TOKENS][:, 1]).bincount(minlength=4).double() / N
    assert total_variation(counts, law / law.sum()) < 0.03


class TestContract(StateContract):
    """As many numbers as tokens in each row."""

    num_steps = 11

    def make(self) -> tuple[Sampler, Denoiser]:
        noise = process(3)
        return InterleavedSteps(process=noise), InterleavedDenoiser(PaddedMixed(), noise)

    def shape(self, rows: int, length: int) -> dict[str, tuple[int, int]]:
        return {TOKENS: (rows, length), VALUES: (rows, length)}

    def attention_mask(self, real: torch.Tensor) -> torch.Tensor:
        return torch.cat([real, real], 1)


def test_ragged_rows_are_noised_and_denoised_as_alone() -> None:
    """Noise that stops within a round; elements are missing anywhere."""
    noise = process(3)
    denoiser, sampler = InterleavedDenoiser(PaddedMixed(), noise), InterleavedSteps(process=noise)
    x = {TOKENS: (Rng(1).uniform((12, 4)) * 2).long(), VALUES: Rng(2).normal((12, 3))}
    real = Rng(3).uniform((12, 7)) < 0.7
    real[:, 0] = True

    def run(x: dict[str, torch.Tensor], rows: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        told = {} if mask is None else {"attention_mask": mask}
        out = redenoise(sampler, denoiser, noise, x, t=0.4, num_steps=4, rng=Rng(4).rows(rows), rounds=2, **told)
        assert isinstance(out, dict)
        return out

    together = run(x, torch.arange(12), real)
    for i in range(12):
        keep = {TOKENS: real[i, :4], VALUES: real[i, 4:]}
        alone = run({k: v[i : i + 1, keep[k]] for k, v in x.items()}, torch.tensor([i]), None)
        assert torch.equal(alone[TOKENS][0], together[TOKENS][i, keep[TOKENS]])
        torch.testing.assert_close(alone[VALUES][0], together[VALUES][i, keep[VALUES]])
        assert all(torch.equal(together[k][i, ~keep[k]], x[k][i, ~keep[k]]) for k in x)


def test_a_full_mask_is_no_mask_and_ragged_rows_are_as_alone() -> None:
    noise = process(3)
    denoiser, sampler = InterleavedDenoiser(PaddedMixed(), noise), InterleavedSteps(process=noise)
    real = {TOKENS: torch.tensor([[1, 1, 1], [1, 0, 0]]).bool(), VALUES: torch.tensor([[1, 0], [1, 1]]).bool()}

    def run(rows: list[int], tokens: int, values: int, **told: torch.Tensor) -> dict[str, torch.Tensor]:
        x = {TOKENS: torch.zeros(len(rows), tokens, dtype=torch.int64), VALUES: torch.zeros(len(rows), values)}
        out = sample(sampler, denoiser, x, num_steps=12, rng=Rng(4).rows(torch.tensor(rows)), **told)
        assert isinstance(out, dict)
        return out

    together = run([0, 1], 3, 2, attention_mask=torch.cat([real[TOKENS], real[VALUES]], 1))
    for i, (tokens, values) in enumerate([(3, 1), (1, 2)]):
        alone = run([i], tokens, values)
        assert torch.equal(alone[TOKENS][0], together[TOKENS][i][real[TOKENS][i]])
        torch.testing.assert_close(alone[VALUES][0], together[VALUES][i][real[VALUES][i]])
    assert float(together[VALUES][0, 1]) == 0, "padding was edited"


def test_rows_at_different_times_undo_their_own_visits() -> None:
    noise = process(3)
    denoiser, sampler = InterleavedDenoiser(Exact(noise), noise), InterleavedSteps(process=noise)
    x = noise.prior({TOKENS: (2, 2), VALUES: (2, 1)}, Rng(0))
    t, s = torch.tensor([1.0, 5 / 9]).double(), torch.tensor([8 / 9, 1 / 9]).double()
    both, _ = sampler.step(denoiser, x, t, s, Carry(), Rng(4))
    assert isinstance(x, dict)
    assert isinstance(both, dict)
    for i in range(2):
        one = {k: v[i : i + 1] for k, v in x.items()}
        alone, _ = sampler.step(denoiser, one, t[i : i + 1], s[i : i + 1], Carry(), Rng(4).rows(torch.tensor([i])))
        assert isinstance(alone, dict)
        assert torch.equal(alone[TOKENS], both[TOKENS][i : i + 1])
        torch.testing.assert_close(alone[VALUES], both[VALUES][i : i + 1])


def test_refuses() -> None:
    with pytest.raises(ValueError, match="num_substeps=0"):
        InterleavedSteps(process=process(), num_substeps=0)
    noise = process()
    denoiser, shape = InterleavedDenoiser(Exact(noise), noise), {TOKENS: (2, 2), VALUES: (2, 1)}
    x, steps = noise.prior(shape, Rng(0)), InterleavedSteps(process=noise)
    t, s = torch.full((2,), 1.0).double(), torch.full((2,), 0.5).double()
    with pytest.raises(TypeError, match="one editable tensor"):
        steps.step(denoiser, x, t, s, Carry(), Rng(0), editable=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"wanted \(2, 3\)"):
        steps.step(denoiser, x, t, s, Carry(), Rng(0), attention_mask=torch.ones(2, 2).bool())
    assert isinstance(x, dict)
    turned = {VALUES: x[VALUES], TOKENS: x[TOKENS]}
    with pytest.raises(ValueError, match=r"\['values', 'tokens'\]"):
        steps.step(denoiser, turned, t, s, Carry(), Rng(0), attention_mask=torch.ones(2, 3).bool())
