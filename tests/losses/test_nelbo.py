import pytest
import torch

from contracts import BoundContract
from unmask import Interpolating, Rng
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.losses.nelbo import NELBO
from unmask.oracles.tiny_joint import TinyJoint
from unmask.processes.masked import Masked
from unmask.schedules.linear import Linear


class Uniform(Interpolating):
    vocab_size, schedule = 2, Linear()

    def mixing(self, t: torch.Tensor) -> torch.Tensor:
        return torch.full((2,), 0.5, dtype=torch.float64)


class TestGenericNELBO(BoundContract):
    """Tight for any process: in continuous time the exact reverse rates factorise."""

    @pytest.fixture(autouse=True, params=[Uniform(), Masked(vocab_size=3, mask_id=2)], ids=["uniform", "masked"])
    def _process(self, request: pytest.FixtureRequest) -> None:
        self.process = request.param

    def make(self) -> tuple[NELBO, Interpolating]:
        return NELBO(process=self.process), self.process


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
