"""One step: its gradient, its corruption and its order of data depend on the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training.small_run import Ragged, checkpoint, tokenizer
from unmask import Rng
from unmask.loss import Loss
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.training.config import TrainingConfig
from unmask.training.engine import Engine
from unmask.training.launch import make_accelerator
from unmask.training.stream import Stream

SEED, BATCH, STEP = 5, 16, 3


def engine(micro: int | None, loss: Loss | None = None, **changes: Any) -> Engine:
    model = checkpoint(tokenizer())
    numbers = {"steps": 9, "batch_size": BATCH, "micro_batch_size": micro, "seed": SEED, "max_grad_norm": None}
    config = TrainingConfig(**(numbers | {"warmup_steps": 0, "ema_decay": None} | changes))
    loss = loss or MaskedNELBO(process=model.process)
    return Engine(model.denoiser, loss, Ragged(tokenizer()), config, make_accelerator(config))


def gradient(engine: Engine) -> Tensor:
    return torch.cat([p.grad.flatten() for p in engine.parameters().values()]).clone()


def wanted_gradient(*, local_means: int | None = None) -> Tensor:
    """By hand: all sequences at once over the number of real tokens; or the mean of the means of chunks (wrong)."""
    model = checkpoint(tokenizer())
    loss, data = MaskedNELBO(process=model.process), Ragged(tokenizer())
    positions = torch.arange(STEP * BATCH, (STEP + 1) * BATCH)
    chunks = positions.split(local_means or BATCH)
    for rows in chunks:
        batch = data.batch(Stream(len(data), SEED).examples(rows))
        rng = Rng(SEED).fold(STEP).rows(rows)
        nats = loss(model.denoiser, batch["tokens"], rng, attention_mask=batch["attention_mask"])
        (nats.sum() / batch["attention_mask"].sum() / len(chunks)).backward()
    return torch.cat([p.grad.flatten() for p in model.denoiser.parameters()])


@pytest.mark.parametrize("micro", [None, 8, 5, 4, 2])
def test_any_micro_batch_gives_the_gradient_of_the_whole_batch(micro: int | None) -> None:
    one = engine(micro)
    one.step(STEP)
    error = (gradient(one) - wanted_gradient()).abs().max()
    assert error < 1e-6


def test_means_of_micro_batches_are_another_gradient() -> None:
    """The usual mistake is far outside the tolerance of the test above."""
    wanted = wanted_gradient()
    assert (wanted_gradient(local_means=4) - wanted).abs().max() > 1e3 * 1e-6


class _Recorder(Loss):
    """Notes which rows were asked for, and depends on the weights only if `live`."""

    def __init__(self, live: bool) -> None:
        self.live, self.rows = live, []

    def __call__(self, denoiser, x0, rng, *, attention_mask=None, **cond):  # type: ignore[no-untyped-def]
        self.rows.append((rng.row_ids.tolist(), rng.uniform((len(x0), 2)).tolist()))
        zero = torch.zeros(len(x0), dtype=torch.float64)
        return zero + next(denoiser.parameters()).sum() if self.live else zero


def test_corruption_is_keyed_by_the_place_in_the_stream() -> None:
    seen = []
    for micro in (None, 3):
        recorder = _Recorder(live=True)
        engine(micro, recorder).step(STEP)
        rows = [row for call, _ in recorder.rows for row in call]
        assert rows == list(range(STEP * BATCH, (STEP + 1) * BATCH))
        seen.append([draw for _, call in recorder.rows for draw in call])
    assert seen[0] == seen[1]


def test_a_batch_without_a_corrupted_site_steps_with_zero_gradient() -> None:
    one = engine(4, _Recorder(live=False))
    one.step(0)
    assert gradient(one).abs().max() == 0


def test_each_epoch_is_another_permutation() -> None:
    stream, again = Stream(7, seed=1), Stream(7, seed=1)
    epochs = stream.examples(torch.arange(21)).view(3, 7)
    assert (epochs.sort(1).values == torch.arange(7)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    assert again.examples(torch.arange(10, 16)).tolist() == epochs.flatten()[10:16].tolist()
    assert Stream(7, seed=2).examples(torch.arange(7)).tolist() != epochs[0].tolist()


def test_clipping_scales_the_whole_gradient(tmp_path: Path) -> None:
    free, clipped = engine(4), engine(4, max_grad_norm=0.01)
    free.step(STEP)
    clipped.step(STEP)
    assert free.totals().grad_norm == pytest.approx(float(gradient(free).norm()), rel=1e-5)
    assert torch.allclose(gradient(clipped), gradient(free) * 0.01 / gradient(free).norm(), rtol=1e-4, atol=1e-9)


def test_the_first_bad_step_is_named_later() -> None:
    one = engine(4)
    one.step(0)
    assert one.totals().bad_step == -1
    with torch.no_grad():
        next(iter(one.parameters().values())).fill_(torch.nan)
    one.step(1)
    one.step(2)
    assert one.totals().bad_step == 1


def test_bf16_is_near_fp32_and_its_weights_stay_fp32(tmp_path: Path) -> None:
    gradients = {}
    for precision in ("no", "bf16"):
        one = engine(None, mixed_precision=precision)
        one.step(STEP)
        assert {p.dtype for p in one.parameters().values()} == {torch.float32}
        gradients[precision] = gradient(one)
    distance = (gradients["bf16"] - gradients["no"]).norm() / gradients["no"].norm()
    assert 1e-5 < distance < 0.05
