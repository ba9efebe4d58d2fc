import pytest
import torch

from contracts import DiscreteProcessContract, time
from unmask import Interpolating, Rng, Schedule
from unmask.processes.masked import Masked
from unmask.schedules.cosine import Cosine
from unmask.schedules.geometric import Geometric
from unmask.schedules.linear import Linear
from unmask.schedules.polynomial import Polynomial


class TestMasked(DiscreteProcessContract):
    @pytest.fixture(autouse=True, params=[Linear(), Cosine(), Polynomial(power=2.0)], ids=str)
    def _schedule(self, request: pytest.FixtureRequest) -> None:
        self.schedule: Schedule = request.param

    def make(self) -> Masked:
        return Masked(vocab_size=4, mask_id=3, schedule=self.schedule)


class TestUniformNoise(DiscreteProcessContract):
    """The derived forms are not special to masks: uniform noise is one line over `Interpolating`."""

    def make(self) -> Interpolating:
        class Uniform(Interpolating):
            vocab_size, schedule = 3, Linear()

            def mixing(self, t: torch.Tensor) -> torch.Tensor:
                return torch.full((3,), 1 / 3, dtype=torch.float64)

        return Uniform()


class TestMovingNoise(DiscreteProcessContract):
    """A mixing law that moves towards the mask, as hybrids have: catches a kernel that assumes a constant one."""

    def make(self) -> Interpolating:
        class Moving(Interpolating):
            vocab_size, schedule = 4, Linear()

            def mixing(self, t: torch.Tensor) -> torch.Tensor:
                share = (0.5 + 0.5 * t)[..., None]
                uniform = torch.tensor([1.0, 1.0, 1.0, 0.0]).double() / 3
                return share * torch.tensor([0.0, 0.0, 0.0, 1.0]).double() + (1 - share) * uniform

        return Moving()


def test_the_mask_may_stand_anywhere() -> None:
    process = Masked(vocab_size=4, mask_id=1)
    xt = process.corrupt(torch.full((1000, 1), 2), torch.full((1000,), 0.5).double(), Rng(0))
    assert set(xt.unique().tolist()) == {1, 2}


def test_reveal_probability_at_the_last_step_is_one() -> None:
    for schedule in (Linear(), Cosine(), Geometric()):
        process = Masked(vocab_size=3, mask_id=2, schedule=schedule)
        assert float(process.reveal_probability(time(0.01), time(0.0))) == 1.0


@pytest.mark.parametrize("mask_id", [-1, 4])
def test_refuses_a_mask_outside_the_states(mask_id: int) -> None:
    with pytest.raises(ValueError, match="mask_id"):
        Masked(vocab_size=4, mask_id=mask_id)


def test_refuses_a_schedule_that_keeps_data() -> None:
    class Half(Schedule):
        def alpha(self, t: torch.Tensor) -> torch.Tensor:
            return 1 - t / 2

    with pytest.raises(ValueError, match=r"alpha\(1\)"):
        Masked(vocab_size=4, mask_id=3, schedule=Half())


def test_a_continuous_law_is_refused_by_name() -> None:
    from unmask import Normal

    process = Masked(vocab_size=4, mask_id=3)
    with pytest.raises(TypeError, match="Normal"):
        process.reverse(Normal(torch.zeros(1, 2), torch.ones(1)), torch.full((1, 2), 3), time(1.0), time(0.5))
