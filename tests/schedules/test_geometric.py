import math

import pytest

from contracts import ScheduleContract, time
from unmask.schedules.geometric import Geometric


class TestGeometric(ScheduleContract):
    def make(self) -> Geometric:
        return Geometric(sigma_min=1e-3, sigma_max=20.0)

    def test_total_noise_is_the_published_one_between_the_ends(self) -> None:
        t = time(0.25, 0.5, 0.75)
        published = (-(1e-5 ** (1 - t)) * 20.0**t).exp()
        assert (Geometric().alpha(t) - published).abs().max() < 2e-5

    def test_forgets_the_data_exactly(self) -> None:
        assert abs(float(Geometric().alpha(time(1.0)))) < 1e-20

    @pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (1e-3, math.inf)])
    def test_refuses(self, low: float, high: float) -> None:
        with pytest.raises(ValueError, match="sigma_min"):
            Geometric(sigma_min=low, sigma_max=high)
