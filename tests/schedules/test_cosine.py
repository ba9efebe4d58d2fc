import math

import pytest

from contracts import ScheduleContract, time
from unmask.schedules.cosine import Cosine


class TestCosine(ScheduleContract):
    def make(self) -> Cosine:
        return Cosine()

    def test_published_value(self) -> None:
        assert float(Cosine().alpha(time(0.5))) == pytest.approx(1 - math.cos(math.pi / 4))
