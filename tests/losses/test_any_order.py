import pytest
import torch

from contracts import BoundContract
from helpers import CountingHead, padded
from unmask import Rng, Schedule
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.any_order import AnyOrderNLL
from unmask.processes.masked import Masked
from unmask.schedules.cosine import Cosine
from unmask.schedules.geometric import Geometric
from unmask.schedules.linear import Linear
from unmask.schedules.polynomial import Polynomial


class TestAnyOrderNLL(BoundContract):
    @pytest.fixture(
        autouse=True,
        params=[Linear(), Cosine(), Polynomial(power=0.7), Geometric(sigma_min=1e-2, sigma_max=20.0)],
        ids=str,
    )
    def _schedule(self, request: pytest.FixtureRequest) -> None:
        self.schedule: Schedule = request.param

    def make(self) -> tuple[AnyOrderNLL, Masked]:
        process = Masked(vocab_size=3, mask_id=2, schedule=self.schedule)
        return AnyOrderNLL(process=process), process


def test_the_head_sees_masked_positions_only() -> None:
    net = CountingHead(vocab_size=6)
    process = Masked(vocab_size=6, mask_id=5)
    x0 = torch.randint(0, 5, (8, 50), generator=torch.Generator().manual_seed(0))
    AnyOrderNLL(process=process)(MaskedDenoiser(net, vocab_size=6, mask_id=5), x0, Rng(0))
    assert net.rows_seen == net.masks_seen
    assert 0 < net.rows_seen < 8 * 50


def test_padding_changes_no_loss() -> None:
    net = CountingHead(vocab_size=6)
    process = Masked(vocab_size=6, mask_id=5)
    loss, denoiser = AnyOrderNLL(process=process), MaskedDenoiser(net, vocab_size=6, mask_id=5)
    x0 = torch.randint(0, 5, (4, 9), generator=torch.Generator().manual_seed(1))
    plain = loss(denoiser, x0, Rng(2))
    for left, right in [(3, 0), (0, 5), (2, 2)]:
        tokens, mask = padded(x0, left, right)
        torch.testing.assert_close(loss(denoiser, tokens, Rng(2), attention_mask=mask), plain)
