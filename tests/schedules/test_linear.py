from contracts import ScheduleContract
from unmask.schedules.linear import Linear


class TestLinear(ScheduleContract):
    def make(self) -> Linear:
        return Linear()
