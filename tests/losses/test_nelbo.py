import math

import pytest
import torch
from torch import nn

from contracts import BoundContract, standard_errors
from helpers import CountingHead, padded
from unmask import Interpolating, Rng, Schedule
from unmask.denoisers.categorical import CategoricalDenoiser
from unmask.denoisers.plug_in import PlugIn
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.losses.nelbo import NELBO
from unmask.oracles.tiny_joint import TinyJoint
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform as UniformNoise
from unmask.schedules.linear import Linear


class Uniform(Interpolating):
    vocab_size, schedule = 2, Linear()

    def mixing(self, t: torch.Tensor) -> torch.Tensor:
        return torch.full((2,), 0.5, dtype=torch.float64)


class Flat(nn.Module):
    """The same logits everywhere."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(1, vocab_size)

    def forward(self, tokens: torch.Tensor, t: torch.Tensor, **cond: object) -> torch.Tensor:
        return torch.zeros(*tokens.shape, 1)


class TestGenericNELBO(BoundContract):
    """Tight for any process: in continuous time the exact reverse rates factorise."""

    @pytest.fixture(autouse=True, params=[Uniform(), Masked(vocab_size=3, mask_id=2)], ids=["uniform", "masked"])
    def _process(self, request: pytest.FixtureRequest) -> None:
        self.process = request.param

    def make(self) -> tuple[NELBO, Interpolating]:
        return NELBO(process=self.process), self.process


class TestSomeOfTheKeptSites(BoundContract):
    """A third of the unchanged sites, weighted by three, have the same expectation."""

    def make(self) -> tuple[NELBO, Interpolating]:
        return NELBO(process=Uniform(), kept_share=1 / 3), Uniform()


def test_unchosen_sites_are_not_evaluated() -> None:
    """A tenth of each row's kept sites, rounded up."""
    process = UniformNoise(vocab_size=6)
    net = CountingHead(vocab_size=6)
    x0 = torch.zeros(64, 50, dtype=torch.int64)
    NELBO(process=process, kept_share=0.1)(CategoricalDenoiser(net, vocab_size=6), x0, Rng(3))
    xt = net.last[0]
    kept = (xt == x0).sum(1)
    assert net.rows_seen == int((xt != x0).sum()) + int((0.1 * kept).ceil().sum())
    with pytest.raises(ValueError, match="kept_share=0"):
        NELBO(process=process, kept_share=0.0)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_share_costs_only_what_kept_sites_differ(share: float) -> None:
    """Where all kept sites cost the same, none is as good as all of them; padding changes no choice."""
    process = UniformNoise(vocab_size=6)
    denoiser = PlugIn(CategoricalDenoiser(Flat(6), vocab_size=6), process)
    x0 = torch.zeros(64, 30, dtype=torch.int64)
    some, full = NELBO(process=process, kept_share=share), NELBO(process=process)
    torch.testing.assert_close(some(denoiser, x0, Rng(3)), full(denoiser, x0, Rng(3)))
    tokens, mask = padded(x0, 3, 2)
    torch.testing.assert_close(some(denoiser, tokens, Rng(3), attention_mask=mask), full(denoiser, x0, Rng(3)))


def test_the_choice_depends_on_the_row_alone() -> None:
    process, net = UniformNoise(vocab_size=6), CountingHead(vocab_size=6)
    loss, denoiser = NELBO(process=process, kept_share=0.2), CategoricalDenoiser(net, vocab_size=6)
    x0 = (Rng(5).uniform((6, 20)) * 6).long()
    whole = loss(denoiser, x0, Rng(3))
    apart = torch.cat([loss(denoiser, x0[i : i + 1], Rng(3).rows(torch.tensor([i]))) for i in range(6)])
    torch.testing.assert_close(apart, whole)
    tokens, mask = padded(x0, 2, 3)
    torch.testing.assert_close(loss(denoiser, tokens, Rng(3), attention_mask=mask), whole)


def test_equals_the_masked_loss_draw_by_draw() -> None:
    """The generic bound from the two vectors is the published masked weighting, to rounding."""
    process, world = Masked(vocab_size=3, mask_id=2), TinyJoint.random(2, 4, seed=2)
    x0, rng = world.sample(200, Rng(0)), Rng(1)
    generic = NELBO(process=process)(world.denoiser(process), x0, rng)
    masked = MaskedNELBO(process=process)(world.denoiser(process), x0, rng)
    torch.testing.assert_close(generic, masked, atol=1e-9, rtol=1e-9)


def test_padding_adds_nothing() -> None:
    process, world = Uniform(), TinyJoint.random(2, 3, seed=2)
    x0 = world.sample(8, Rng(0))
    mask = torch.zeros_like(x0, dtype=torch.bool)
    assert float(NELBO(process=process)(world.denoiser(process), x0, Rng(1), attention_mask=mask).abs().max()) == 0


class Lingering(Schedule):
    """Leaves a fifth of the data at t = 1, so that the prior term counts."""

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        return 1 - 0.8 * t


class UnfinishedUniform(Interpolating):
    vocab_size, schedule = 2, Lingering()

    def mixing(self, t: torch.Tensor) -> torch.Tensor:
        return torch.full((2,), 0.5, dtype=torch.float64)


def test_the_prior_term_is_the_exact_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of q(x_1 | x_0) = (0.6, 0.4) against a uniform prior; without it the bound falls below the entropy."""
    process = UnfinishedUniform()
    exact = 0.6 * math.log(1.2) + 0.4 * math.log(0.8)
    assert float(process.prior_kl(torch.tensor([[0]]))) == pytest.approx(exact)
    world = TinyJoint(torch.tensor([0.9, 0.1]))
    x0 = world.sample(60_000, Rng(0))
    parts = [
        NELBO(process=process)(world.denoiser(process), part, Rng(1).fold(k)).mean()
        for k, part in enumerate(x0.split(300))
    ]
    values = torch.stack(parts)
    assert standard_errors(values, world.entropy) > -5.3
    with_prior = NELBO(process=process)(world.denoiser(process), x0[:5], Rng(1))
    monkeypatch.setattr(UnfinishedUniform, "prior_kl", lambda self, x0: torch.zeros(x0.shape))
    without = NELBO(process=process)(world.denoiser(process), x0[:5], Rng(1))
    torch.testing.assert_close(with_prior - without, torch.full((5,), exact, dtype=torch.float64))
