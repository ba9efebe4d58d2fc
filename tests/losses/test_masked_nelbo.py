import pytest
import torch

from contracts import BoundContract
from helpers import CountingHead, padded
from unmask import Rng, Schedule
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.processes.masked import Masked
from unmask.schedules.cosine import Cosine
from unmask.schedules.geometric import Geometric
from unmask.schedules.linear import Linear
from unmask.schedules.polynomial import Polynomial


class TestMaskedNELBO(BoundContract):
    @pytest.fixture(
        autouse=True,
        params=[Linear(), Cosine(), Polynomial(power=0.7), Geometric(sigma_min=1e-2, sigma_max=20.0)],
        ids=str,
    )
    def _schedule(self, request: pytest.FixtureRequest) -> None:
        self.schedule: Schedule = request.param

    def make(self) -> tuple[MaskedNELBO, Masked]:
        process = Masked(vocab_size=3, mask_id=2, schedule=self.schedule)
        return MaskedNELBO(process=process), process


def test_the_head_sees_masked_positions_only() -> None:
    net = CountingHead(vocab_size=6)
    process = Masked(vocab_size=6, mask_id=5)
    x0 = torch.randint(0, 5, (8, 50), generator=torch.Generator().manual_seed(0))
    MaskedNELBO(process=process)(MaskedDenoiser(net, vocab_size=6, mask_id=5), x0, Rng(0))
    assert net.rows_seen == net.masks_seen
    assert 0 < net.rows_seen < 8 * 50


def test_padding_changes_no_loss() -> None:
    net = CountingHead(vocab_size=6)
    process = Masked(vocab_size=6, mask_id=5)
    loss, denoiser = MaskedNELBO(process=process), MaskedDenoiser(net, vocab_size=6, mask_id=5)
    x0 = torch.randint(0, 5, (4, 9), generator=torch.Generator().manual_seed(1))
    plain = loss(denoiser, x0, Rng(2))
    for left, right in [(3, 0), (0, 5), (2, 2)]:
        tokens, mask = padded(x0, left, right)
        torch.testing.assert_close(loss(denoiser, tokens, Rng(2), attention_mask=mask), plain)


def test_a_row_of_padding_costs_nothing() -> None:
    process = Masked(vocab_size=6, mask_id=5)
    denoiser = MaskedDenoiser(CountingHead(vocab_size=6), vocab_size=6, mask_id=5)
    x0, mask = torch.tensor([[0, 1, 2], [5, 5, 5]]), torch.tensor([[True] * 3, [False] * 3])
    nats = sum(MaskedNELBO(process=process)(denoiser, x0, Rng(k), attention_mask=mask) for k in range(9))
    assert isinstance(nats, torch.Tensor)
    assert float(nats[1]) == 0
    assert float(nats[0]) > 0


def test_the_network_is_told_the_time_of_its_corruption() -> None:
    """Over many rows, the share of masked tokens equals the noise at the time shown."""
    process = Masked(vocab_size=6, mask_id=5, schedule=Cosine())
    net = CountingHead(vocab_size=6)
    x0 = torch.zeros(64, 4000, dtype=torch.int64)
    MaskedNELBO(process=process)(MaskedDenoiser(net, vocab_size=6, mask_id=5), x0, Rng(3))
    tokens, t = net.last
    share = (tokens == 5).double().mean(1)
    assert float((share - process.schedule.noise(t)).abs().max()) < 5.5 * 0.5 / 4000**0.5
