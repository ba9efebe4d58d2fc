"""What every bound that counts masked tokens has to hold."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from contracts import BoundContract
from helpers import CountingHead, padded
from unmask import Loss, Rng, Schedule
from unmask.denoisers.masked import MaskedDenoiser
from unmask.processes.masked import Masked
from unmask.schedules.cosine import Cosine
from unmask.schedules.geometric import Geometric
from unmask.schedules.linear import Linear
from unmask.schedules.polynomial import Polynomial


class BoundOfEverySchedule(BoundContract):
    kind: ClassVar[Any]  # a loss that takes a `process`

    @pytest.fixture(
        autouse=True,
        params=[Linear(), Cosine(), Polynomial(power=0.7), Geometric(sigma_min=1e-2, sigma_max=20.0)],
        ids=str,
    )
    def _schedule(self, request: pytest.FixtureRequest) -> None:
        self.schedule: Schedule = request.param

    def make(self) -> tuple[Loss, Masked]:
        process = Masked(vocab_size=3, mask_id=2, schedule=self.schedule)
        return self.kind(process=process), process


class MaskedCalls:
    """Which sites and rows a network is asked about, and at which time."""

    kind: ClassVar[Any]

    def parts(self) -> tuple[Loss, CountingHead, MaskedDenoiser]:
        net = CountingHead(vocab_size=6)
        process = Masked(vocab_size=6, mask_id=5, schedule=Cosine())
        return self.kind(process=process), net, MaskedDenoiser(net, vocab_size=6, mask_id=5)

    def test_the_head_sees_masked_positions_only(self) -> None:
        loss, net, denoiser = self.parts()
        loss(denoiser, torch.randint(0, 5, (8, 50), generator=torch.Generator().manual_seed(0)), Rng(0))
        assert net.rows_seen == net.masks_seen
        assert 0 < net.rows_seen < 8 * 50

    def test_padding_changes_no_loss(self) -> None:
        loss, _, denoiser = self.parts()
        x0 = torch.randint(0, 5, (4, 9), generator=torch.Generator().manual_seed(1))
        plain = loss(denoiser, x0, Rng(2))
        for left, right in [(3, 0), (0, 5), (2, 2)]:
            tokens, mask = padded(x0, left, right)
            torch.testing.assert_close(loss(denoiser, tokens, Rng(2), attention_mask=mask), plain)

    def test_a_row_of_padding_costs_nothing(self) -> None:
        loss, _, denoiser = self.parts()
        x0, mask = torch.tensor([[0, 1, 2], [5, 5, 5]]), torch.tensor([[True] * 3, [False] * 3])
        nats = torch.stack([loss(denoiser, x0, Rng(k), attention_mask=mask) for k in range(9)]).sum(0)
        assert float(nats[1]) == 0
        assert float(nats[0]) > 0

    def test_the_network_is_told_the_time_of_its_corruption(self) -> None:
        """Over many rows, the share of masked tokens equals the noise at the time shown."""
        loss, net, denoiser = self.parts()
        loss(denoiser, torch.zeros(64, 4000, dtype=torch.int64), Rng(3))
        tokens, t = net.last
        share = (tokens == 5).double().mean(1)
        assert float((share - (1 - Cosine().alpha(t))).abs().max()) < 5.5 * 0.5 / 4000**0.5
