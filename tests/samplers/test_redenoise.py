"""Noise and denoise again: the model's law stays, and what is off the data moves closer."""

from __future__ import annotations

import pytest
import torch

from contracts import FALSE_ALARM, PaddedChain
from sat import NUM_VARIABLES, ClauseNet, instances, solved
from unmask import Carry, Categorical, Denoiser, Loss, Rng, sample
from unmask.denoisers.glauber import GlauberDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.glauber import GlauberClassification
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TinyJoint, state_index
from unmask.processes.glauber import Glauber
from unmask.processes.masked import Masked
from unmask.processes.shuffle import Riffle
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.first_hitting import FirstHitting
from unmask.samplers.glauber import GlauberSteps
from unmask.samplers.redenoise import redenoise

WORLD, MASKED = TinyJoint.random(3, 3, seed=4, sharpness=2.0), Masked(vocab_size=4, mask_id=3)
SAMPLER = FirstHitting(process=MASKED)  # exact when it takes as many steps as there are masks


def again(x: torch.Tensor, rounds: int, **told: object) -> torch.Tensor:
    denoiser = WORLD.denoiser(MASKED)
    out = redenoise(SAMPLER, denoiser, MASKED, x, t=0.6, num_steps=3, rounds=rounds, rng=Rng(2), **told)  # type: ignore[arg-type]
    assert isinstance(out, torch.Tensor)
    return out


def test_a_draw_of_the_model_stays_one() -> None:
    x = WORLD.sample(40_000, Rng(1))
    after = again(x, 2)
    assert float((after != x).any(1).double().mean()) > 0.3
    assert chi_square(state_index(after, 3).bincount(minlength=27), WORLD.probs) > FALSE_ALARM


def test_a_wrong_start_is_forgotten_round_by_round() -> None:
    x = (Rng(3).uniform((20_000, 3)) * 3).long()
    errors = [
        total_variation(state_index(again(x, rounds), 3).bincount(minlength=27).double() / len(x), WORLD.probs)
        for rounds in (1, 3, 6)
    ]
    print(errors)
    assert errors[0] > 1.7 * errors[1] > 2.5 * errors[2]


def test_fixed_sites_padding_and_the_batch_change_nothing() -> None:
    x = WORLD.sample(8, Rng(4))
    free = torch.tensor([[True, False, True]]).expand(8, -1)
    after = again(x, 3, editable=free)
    assert torch.equal(after[:, 1], x[:, 1])
    assert not torch.equal(after, x)
    for i in range(8):
        alone = redenoise(
            SAMPLER,
            WORLD.denoiser(MASKED),
            MASKED,
            x[i : i + 1],
            t=0.6,
            num_steps=3,
            rounds=3,
            rng=Rng(2).rows(torch.tensor([i])),
            editable=free[i : i + 1],
        )
        assert torch.equal(alone, after[i : i + 1])

    chain, real = PaddedChain(4), torch.tensor([[False] * 2 + [True] * 3 + [False]]).expand(8, -1)
    bare = redenoise(SAMPLER, chain, MASKED, x, t=0.6, num_steps=3, rounds=2, rng=Rng(2))
    wide = torch.zeros(8, 6, dtype=torch.int64).masked_scatter(real, x)
    out = redenoise(SAMPLER, chain, MASKED, wide, t=0.6, num_steps=3, rounds=2, rng=Rng(2), attention_mask=real)
    assert isinstance(out, torch.Tensor)
    assert isinstance(bare, torch.Tensor)
    assert torch.equal(out[real].reshape(8, 3), bare)
    assert not bool(out[~real].any())


def test_padding_changes_nothing_where_sites_take_turns() -> None:
    """Noise that stops within a round: which sites have been visited depends on how many there are."""
    glauber, x = Glauber(vocab_size=4, num_rounds=3, keep=0.4), (Rng(3).uniform((64, 3)) * 4).long()

    def run(x: torch.Tensor, **told: torch.Tensor) -> torch.Tensor:
        steps = GlauberSteps(process=glauber)
        out = redenoise(steps, PaddedChain(5), glauber, x, t=5 / 9, num_steps=5, rng=Rng(2), **told)  # type: ignore[arg-type]
        assert isinstance(out, torch.Tensor)
        return out

    real = torch.tensor([[False] * 2 + [True] * 3 + [False] * 2]).expand(64, -1)
    wide = torch.zeros(real.shape, dtype=torch.int64).masked_scatter(real, x)
    assert torch.equal(run(wide, attention_mask=real)[real].reshape(64, 3), run(x))


def test_shuffled_rows_keep_their_items_padding_and_fixed_places() -> None:
    noise, x = Riffle(levels=(0, 2, 5)), torch.tensor([[5, 6, 7, 9, 9]]).expand(200, -1)
    real = torch.tensor([[True, True, True, False, False]]).expand(200, -1)
    free = torch.tensor([[True, False, True, True, True]]).expand(200, -1)
    seen = set()

    class Waiting(Ancestral):
        def step(self, denoiser: object, x: torch.Tensor, *rest: object, **told: object) -> tuple:
            seen.update(map(tuple, x.tolist()))
            return x, Carry()

    told = {"editable": free, "attention_mask": real}
    redenoise(Waiting(process=noise), PaddedChain(10), noise, x, t=1.0, num_steps=1, rng=Rng(2), **told)
    assert seen == {(5, 6, 7, 9, 9), (7, 6, 5, 9, 9)}


def test_the_way_back_begins_where_the_noise_ended() -> None:
    told = []

    class Clocked(PaddedChain):
        def forward(self, xt: torch.Tensor, t: torch.Tensor, **cond: object) -> Categorical:  # type: ignore[override]
            told.append(float(t[0]))
            return super().forward(xt, t, **cond)

    process = Uniform(vocab_size=4)
    x = (Rng(3).uniform((4, 3)) * 4).long()
    redenoise(Ancestral(process=process), Clocked(4), process, x, t=0.6, num_steps=3, rounds=2, rng=Rng(0))
    assert told == pytest.approx([0.6, 0.4, 0.2] * 2)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="t=0"):
        redenoise(SAMPLER, WORLD.denoiser(MASKED), MASKED, WORLD.sample(2, Rng(0)), t=0.0, num_steps=3, rng=Rng(0))


def trained(net: ClauseNet, denoiser: Denoiser, loss: Loss, seed: int, steps: int = 2000) -> None:
    clauses, solutions = instances(30_000, 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = (Rng(seed).fold(step, 1).uniform((128,)) * len(solutions)).long()
        optimizer.zero_grad()
        loss(denoiser, solutions[rows], Rng(seed).fold(step, 2), clauses=clauses[rows]).mean().backward()
        optimizer.step()
        decay.step()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_formulas_by_gibbs_steps_with_and_without(seed: int) -> None:
    """3-SAT, 8 variables, 28 clauses, networks of equal size and training, 32 calls: more of Glauber's assignments hold
    after 8 rounds than before. A finding against the paper: the masked model solves more of them all the same."""
    glauber = Glauber(vocab_size=2, num_rounds=4, keep=0.4)
    masked, clauses = Masked(vocab_size=3, mask_id=2), instances(1000, 1)[0]
    gibbs_net, masked_net = ClauseNet(seed, outputs=3), ClauseNet(seed, outputs=3)
    gibbs, factorised = GlauberDenoiser(gibbs_net, glauber), MaskedDenoiser(masked_net, vocab_size=3, mask_id=2)
    trained(gibbs_net, gibbs, GlauberClassification(process=glauber), seed)
    trained(masked_net, factorised, MaskedNELBO(process=masked), seed)
    shape, steps = (len(clauses), NUM_VARIABLES), GlauberSteps(process=glauber)
    x = sample(steps, gibbs, shape, num_steps=32, rng=Rng(5), clauses=clauses)
    after = redenoise(steps, gibbs, glauber, x, t=0.25, num_steps=8, rounds=8, rng=Rng(6), clauses=clauses)
    other = sample(Ancestral(process=masked), factorised, shape, num_steps=32, rng=Rng(5), clauses=clauses)
    share = [float(solved(clauses, found).double().mean()) for found in (x, after, other)]  # type: ignore[arg-type]
    print(f"seed {seed}: Gibbs {share[0]:.3f}, after 8 rounds {share[1]:.3f}, masked {share[2]:.3f}")
    assert share[1] > share[0]
    assert share[2] > share[1]
