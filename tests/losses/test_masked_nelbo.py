from masked_bounds import BoundOfEverySchedule, MaskedCalls
from unmask.losses.masked_nelbo import MaskedNELBO


class TestMaskedNELBO(BoundOfEverySchedule):
    kind = MaskedNELBO


class TestCalls(MaskedCalls):
    kind = MaskedNELBO
