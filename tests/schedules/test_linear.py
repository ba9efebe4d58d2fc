import pytest

from contracts import ScheduleContract, time
from unmask.schedules.linear import Linear


class TestLinear(ScheduleContract):
    def make(self) -> Linear:
        return Linear()

    def test_is_the_log_linear_noise_of_masked_models(self) -> None:
        assert float(-Linear().alpha(time(0.75)).log()) == pytest.approx(-(time(0.25).log().item()))
