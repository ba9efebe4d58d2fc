"""The gradient of the expected reward against finite differences, and rewards that rise."""

from __future__ import annotations

import copy
import itertools
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import fit
from policy_worlds import BITS, Tables, by_hand, trajectories
from unmask import Categorical, Denoiser, Rng, sample
from unmask.denoisers.masked import MaskedDenoiser
from unmask.denoisers.unmasking_policy import PolicyLaw, UnmaskingPolicy
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.policy_gradient import PolicyGradient, group_advantages
from unmask.nn.transformer import TransformerConfig
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.recorded import path, rollout
from unmask.samplers.unmask import Unmask, per_step
from unmask.select.plackett_luce import plackett_luce


def odd(x: Tensor) -> Tensor:
    """A reward that sites must agree on: 1 for an odd number of ones, and a little for the first."""
    return (x.sum(1) % 2 + 0.3 * x[:, 0]).double()


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("entropy_weight", "divergence_weight"), [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.2, 0.5)])
def test_the_mean_gradient_is_that_of_the_objective(k: int, entropy_weight: float, divergence_weight: float) -> None:
    """All trajectories of three bits, each with its probability, against finite differences of the definition."""
    model, start, listed = Tables(3, seed=4), Tables(3, seed=5), trajectories(3, k)
    reward, n = odd(listed.x), len(listed.x)
    reference = start if divergence_weight else None
    loss = PolicyGradient(
        group_size=n,
        standardise=False,
        entropy_weight=entropy_weight,
        divergence_weight=divergence_weight,
        reference=reference,
    )
    probs = listed.log_probs(model).sum(1).exp().detach()
    (probs * loss(model, listed.x, Rng(0), rollout=listed, reward=reward)).sum().backward()
    begin = by_hand(start, listed).detach()

    def objective() -> float:
        with torch.no_grad():
            log_p = by_hand(model, listed)
            value = reward - entropy_weight * log_p - divergence_weight * (log_p - begin)
            return float((log_p.exp() * value).sum())

    entries: list[tuple[Tensor, tuple[int, ...]]] = [
        (model.scores, (26, 0)),
        (model.scores, (26, 2)),
        (model.logits, (26, 0, 1)),
        (model.logits, (26, 2, 0)),
        (model.logits, (24 if k == 2 else 17, 2 if k == 2 else 1, 0)),
    ]
    for parameter, index in entries:
        step, value = 1e-5, parameter.data[index].clone()
        parameter.data[index] = value + step
        above = objective()
        parameter.data[index] = value - step
        slope = (above - objective()) / (2 * step)
        parameter.data[index] = value
        assert parameter.grad is not None
        # a group of all n takes the mean of the others as baseline: n / (n - 1) of the gradient
        assert -float(parameter.grad[index]) * (n - 1) / n == pytest.approx(slope, abs=1e-8)


def test_advantages() -> None:
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 5.0, 5.0, 5.0]).double()
    torch.testing.assert_close(
        group_advantages(reward, 4, standardise=True), torch.tensor([1.0, -1, -1, 1, 0, 0, 0, 0]).double()
    )
    others = group_advantages(reward, 4, standardise=False)
    torch.testing.assert_close(others[0], (reward[0] - reward[1:4].mean()))
    assert torch.equal(group_advantages(torch.full((4,), 0.1), 4, standardise=True), torch.zeros(4))
    with pytest.raises(ValueError, match="whole groups of 3"):
        group_advantages(reward, 3, standardise=True)


def test_clipping_stops_steps_that_have_moved_far_enough() -> None:
    """Rows whose steps are already 1 + c times as likely, or 1 - c, gain nothing more; the others still do."""
    model, listed = Tables(3, seed=4), trajectories(3, 1)
    now = listed.log_probs(model).detach()
    reward = torch.zeros(len(now)).double()
    reward[::2] = 1.0
    shift = torch.tensor([0.5, 0.0, -0.5]).double()  # ratios e^0.5, 1, e^-0.5 of the three steps
    loss = PolicyGradient(group_size=len(now), clip=0.2)
    value = loss(model, listed.x, Rng(0), rollout=listed, reward=reward, old_log_probs=now - shift)
    good = -(1.2 + 1 + torch.tensor(-0.5).exp().double())
    bad = torch.tensor(0.5).exp().double() + 1 + 0.8
    wanted = torch.where(reward > 0, good, bad)
    torch.testing.assert_close(value.detach(), wanted)


def test_a_path_of_another_sampler_is_reinforced_too() -> None:
    process = Uniform(vocab_size=3)
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)

    class Sites(Denoiser):
        def forward(self, xt: Any, t: Tensor, **cond: Any) -> Categorical:
            return Categorical.from_logits(logits.expand(len(xt), -1, -1))

    optimizer, model = torch.optim.Adam([logits], lr=0.2), Sites()
    for step in range(24):
        found = path(Ancestral(process=process), model, process.prior((32, 2), Rng(step)), num_steps=3, rng=Rng(step))
        reward = (found.canvases[-1] == 2).sum(1).double()
        optimizer.zero_grad()
        PolicyGradient(group_size=32)(model, found.canvases[-1], Rng(0), rollout=found, reward=reward).mean().backward()
        optimizer.step()
    assert float(logits.detach().softmax(1)[:, 2].min()) > 0.9


class Copies(Denoiser):
    """Two bits and a copy of each, known exactly; only the scores of the sites are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, xt: Any, t: Tensor, **cond: Any) -> PolicyLaw:
        twin = xt[:, [2, 3, 0, 1]]
        even = torch.tensor([0.5, 0.5, 0.0]).double().log()
        logits = torch.where((twin == 2)[..., None], even, torch.nn.functional.one_hot(twin, 3).double().log())
        return PolicyLaw(Categorical.from_logits(logits).with_known(xt, xt != 2), self.scores.expand(len(xt), -1))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_learns_which_sites_go_together(seed: int) -> None:
    """Two sites a step: a bit and its copy drawn at once disagree half the time. 3/4 solved by random orders."""
    model, canvas = Copies(), torch.zeros(64, 4, dtype=torch.int64)
    base = Unmask(process=BITS, order=plackett_luce(), quota=per_step(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    rates = []
    for step in range(36):
        found = rollout(base, model, canvas, num_steps=2, rng=Rng(seed).fold(step))
        reward = (found.x[:, :2] == found.x[:, 2:]).all(1).double()
        rates.append(float(reward.mean()))
        optimizer.zero_grad()
        PolicyGradient(group_size=64)(model, found.x, Rng(0), rollout=found, reward=reward).mean().backward()
        optimizer.step()
    assert sum(rates[:2]) / 2 < 0.88
    assert sum(rates[-6:]) / 6 > 0.95


# -- Sudoku of two by two blocks ---------------------------------------------------------------------------------

PROCESS = Masked(vocab_size=5, mask_id=4)
UNITS = torch.tensor(
    [[4 * i + j for j in range(4)] for i in range(4)]
    + [[4 * i + j for i in range(4)] for j in range(4)]
    + [[4 * (a + i) + b + j for i in range(2) for j in range(2)] for a in (0, 2) for b in (0, 2)]
)


@cache
def grids() -> Tensor:
    """All 288 solved grids, (288, 16)."""
    rows = torch.tensor(list(itertools.permutations(range(4))))
    pairs = rows[torch.cartesian_prod(torch.arange(24), torch.arange(24))].flatten(1)
    pairs = pairs[solved(pairs, UNITS[[8, 9]])]
    number = torch.arange(len(pairs))
    whole = pairs[torch.cartesian_prod(number, number)].flatten(1)
    return whole[solved(whole, UNITS)]


def solved(x: Tensor, units: Tensor = UNITS) -> Tensor:
    return (x[:, units].sort(-1).values == torch.arange(4)).flatten(1).all(1)


def puzzles(n: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """Solved grids, and which ten of their cells are to be found."""
    pick = (rng.fold(1).uniform((n,)) * len(grids())).long()
    return grids()[pick], rng.fold(2).uniform((n, 16)).argsort(1).argsort(1) < 10


def solve_rate(model: Denoiser, base: Unmask, seed: int) -> float:
    grid, open_cells = puzzles(2048, Rng(seed).fold(99))
    drawn = sample(base, model, grid, num_steps=4, rng=Rng(seed), editable=open_cells)
    assert isinstance(drawn, Tensor)
    return float(solved(drawn).double().mean())


def supervised(seed: int, steps: int) -> UnmaskingPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = TransformerConfig(
            vocab_size=5, dim=64, num_layers=3, num_heads=4, max_length=16, absolute_positions=True
        )
        inner = MaskedDenoiser(config.build(), vocab_size=5, mask_id=4)
        model = UnmaskingPolicy(inner, dim=64, num_heads=4)

    def data(step: int) -> Tensor:
        return puzzles(128, Rng(seed).fold(step))[0]

    fit(inner.parameters(), AnyOrderNLL(process=PROCESS), inner, data, steps=steps, seed=seed)
    return model


def reinforced(start: UnmaskingPolicy, base: Unmask, seed: int, steps: int) -> UnmaskingPolicy:
    """Sixteen puzzles of eight tries an update."""
    model, loss = copy.deepcopy(start), PolicyGradient(group_size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    for step in range(steps):
        rng = Rng(seed).fold(7, step)
        grid, open_cells = (part.repeat_interleave(8, 0) for part in puzzles(16, rng))
        found = rollout(base, model, grid, num_steps=4, rng=rng, editable=open_cells)
        optimizer.zero_grad()
        loss(model, found.x, rng, rollout=found, reward=solved(found.x).double()).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_more_puzzles_are_solved_than_by_the_supervised_start(seed: int) -> None:
    """Ten cells in four steps of at most three: the start in random order, and the policy after reinforcement."""
    start = supervised(seed, 300)
    base = Unmask(process=PROCESS, order=plackett_luce(), quota=per_step(3))
    model = reinforced(start, base, seed, 80)
    before, after = solve_rate(start, base, seed), solve_rate(model, base, seed)
    print(f"seed {seed}: solved {before:.3f} before, {after:.3f} after")
    assert len(grids()) == 288
    assert after > before + 0.03


def test_refuses() -> None:
    model, listed = Tables(3, seed=4), trajectories(3, 2)
    with pytest.raises(ValueError, match="no rollout"):
        PolicyGradient(group_size=2)(model, listed.x, Rng(0))
    for wrong in ({"group_size": 1}, {"clip": 0.0}, {"entropy_weight": -1.0}, {"divergence_weight": 1.0}):
        with pytest.raises(ValueError, match="PolicyGradient"):
            PolicyGradient(**{"group_size": 2, **wrong})
