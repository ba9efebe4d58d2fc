import pytest

from contracts import ScheduleContract, time
from unmask.schedules.polynomial import Polynomial


class TestPolynomial(ScheduleContract):
    def make(self) -> Polynomial:
        return Polynomial(power=3.0)

    def test_published_value(self) -> None:
        assert float(Polynomial(power=3.0).alpha(time(0.5))) == pytest.approx(1 - 0.5**3)

    @pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
    def test_refuses(self, power: float) -> None:
        with pytest.raises(ValueError, match="power"):
            Polynomial(power=power)
