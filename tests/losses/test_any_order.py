from masked_bounds import BoundOfEverySchedule, MaskedCalls
from unmask.losses.any_order import AnyOrderNLL


class TestAnyOrderNLL(BoundOfEverySchedule):
    kind = AnyOrderNLL


class TestCalls(MaskedCalls):
    kind = AnyOrderNLL
