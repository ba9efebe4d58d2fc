from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import unit_interval_quadrature
from helpers import CountingHead, padded
from path_worlds import CODE_PROCESS, code, uncertain
from unmask import Categorical, Denoiser, Rng
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.path_planning import PathPlannerLoss
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform

WORLD = code(1, length=3, words=3, slip=0.1)
MODEL = uncertain(WORLD, 0.5)


class Table(Denoiser):
    """Free logits for every canvas of three bits."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(8, 3, 2).double())

    def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
        return Categorical.from_logits(self.logits[state_index(xt, 2)])


def joint_of_drafts(world: TinyJoint, model: Denoiser) -> Tensor:
    """p(z, site i of z is wrong) over drafts z, (8, 3, 2): all x_0, masks and draws, t integrated."""
    out = torch.zeros(8, 3, 2).double()
    drafts = enumerate_states(2, 3)
    for t, weight in unit_interval_quadrature(12):
        for masked in enumerate_states(2, 3).bool():
            chance = torch.where(masked, t, 1 - t).prod()
            x0 = world.sequences
            xt = x0.masked_fill(masked, 2)
            laws = model(xt, torch.full((len(xt),), t).double()).log_probs().exp()  # type: ignore[attr-defined]
            draws = laws[:, torch.arange(3), drafts]  # (n, 8, 3)
            each = torch.where(masked, draws, (drafts == x0[:, None]).double()).prod(-1)
            mass = weight * chance * world.probs[:, None] * each
            wrong = (drafts != x0[:, None]).double()  # (n, 8, 3)
            out[..., 1] += (mass[..., None] * wrong).sum(0)
            out[..., 0] += (mass[..., None] * (1 - wrong)).sum(0)
    return out


def test_the_minimum_is_the_chance_that_a_token_of_the_draft_is_wrong() -> None:
    """The slope of the convex loss vanishes there, within 5.3 standard errors, and the loss is the entropy."""
    exact = joint_of_drafts(WORLD, MODEL)
    assert float(exact.sum()) == pytest.approx(3.0)
    planner, loss = Table(), PathPlannerLoss(process=CODE_PROCESS, model=MODEL)
    x0 = WORLD.sample(40_000, Rng(3))

    def statistics(logits: Tensor) -> tuple[float, float, float]:
        planner.logits.data = logits
        slopes, means = [], []
        for k, part in enumerate(x0.split(400)):
            value = loss(planner, part, Rng(4).fold(k)).mean()
            slopes.append(torch.autograd.grad(value, planner.logits)[0])
            means.append(value.detach())
        every, mean = torch.stack(slopes), torch.stack(means)
        worst = (every.mean(0) / every.std(0) * 10)[every.std(0) > 0].abs().max()
        return float(worst), float(mean.mean()), float(mean.std() / 10)

    law = exact / exact.sum(-1, keepdim=True)
    worst, mean, error = statistics(law.log())
    assert worst < 5.3
    assert abs(mean + float((exact * law.log()).sum())) < 5.3 * error
    assert statistics(0 * law)[0] > 20
    assert not PathPlannerLoss.bound


def test_the_planner_sees_a_draft_without_masks_and_the_model_is_not_trained() -> None:
    head = CountingHead(vocab_size=12)
    model = MaskedDenoiser(head, vocab_size=12, mask_id=11)
    head.weight.requires_grad_(True)
    seen = []

    class Watching(Table):
        def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
            seen.extend([xt, t])
            return Categorical.from_logits(torch.nn.functional.one_hot(xt % 2, 2) * self.logits.sum())

    process, planner = Masked(vocab_size=12, mask_id=11), Watching()
    x0 = (Rng(1).uniform((16, 6)) * 11).long()
    PathPlannerLoss(process=process, model=model)(planner, x0, Rng(2)).mean().backward()
    assert planner.logits.grad is not None
    assert head.weight.grad is None
    assert bool((seen[0] != 11).all())
    assert not torch.equal(seen[0], x0)
    given, told = head.last
    assert torch.equal(told, seen[1])
    share = (given == 11).double().mean(1)
    assert float(torch.corrcoef(torch.stack([share, told]))[0, 1]) > 0.6, "both know how much is masked"


def test_rows_and_padding_change_nothing() -> None:
    process = Masked(vocab_size=12, mask_id=11)
    model = MaskedDenoiser(CountingHead(vocab_size=12), vocab_size=12, mask_id=11)
    loss = PathPlannerLoss(process=process, model=model)
    planner = Sines()
    x0, rows = (Rng(1).uniform((16, 6)) * 11).long(), torch.arange(40, 56)
    together = loss(planner, x0, Rng(3).rows(rows))
    apart = torch.cat([loss(planner, x0[i : i + 1], Rng(3).rows(rows[i : i + 1])) for i in range(16)])
    torch.testing.assert_close(together, apart)
    for left, right in [(3, 0), (1, 2)]:
        tokens, mask = padded(x0, left, right)
        torch.testing.assert_close(loss(planner, tokens, Rng(3).rows(rows), attention_mask=mask), together)


class Sines(Denoiser):
    def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
        return Categorical.from_logits(torch.stack([torch.sin(1.0 + xt), torch.cos(1.0 + xt)], -1))


def test_refuses() -> None:
    with pytest.raises(TypeError, match="Masked"):
        PathPlannerLoss(process=Uniform(vocab_size=3), model=MODEL)  # type: ignore[arg-type]
