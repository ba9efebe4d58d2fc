"""Schedules at their landmarks, the moving average to the last bit, and which weights decay."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from training.small_run import checkpoint, tokenizer
from unmask.training.config import TrainingConfig
from unmask.training.optim import Ema, learning_rate_factor, parameter_groups


def factors(**numbers: object) -> list[float]:
    config = TrainingConfig(steps=100, batch_size=1, warmup_steps=10, min_lr_ratio=0.1, **numbers)
    return [learning_rate_factor(step, config) for step in range(100)]


def test_cosine_landmarks() -> None:
    f = factors(lr_schedule="cosine")
    assert f[0] == pytest.approx(0.1)
    assert f[4] == pytest.approx(0.5)
    assert f[9] == 1.0
    assert f[54] == pytest.approx(0.55)  # half of the 90 decaying steps: halfway between 1 and 0.1
    assert f[99] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(f[9:]))


def test_wsd_landmarks() -> None:
    f = factors(lr_schedule="wsd", wsd_decay_fraction=0.2)
    assert f[0] == pytest.approx(0.1)
    assert f[9:80] == [1.0] * 71
    assert f[80] == pytest.approx(1 - 0.9 / 20)
    assert f[89] == pytest.approx(0.55)
    assert f[99] == pytest.approx(0.1)


def test_no_warm_up_starts_below_the_peak_by_one_step_only() -> None:
    config = TrainingConfig(steps=10, batch_size=1, warmup_steps=0, lr_schedule="wsd", wsd_decay_fraction=0.5)
    assert learning_rate_factor(0, config) == 1.0


def test_ema_is_the_recursion_with_warm_up() -> None:
    weights = {"w": torch.tensor([1.0, -2.0]), "h": torch.tensor([3.0], dtype=torch.bfloat16)}
    ema = Ema(weights, decay=0.5)
    wanted = {name: w.double() for name, w in weights.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        weights = {name: torch.randn(w.shape, generator=generator).to(w.dtype) for name, w in weights.items()}
        ema.update(step, weights)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = {name: decay * m + (1 - decay) * weights[name].double() for name, m in wanted.items()}
        if step == 0:
            assert torch.allclose(ema.average["w"].double(), wanted["w"], atol=1e-7)
    for name in weights:
        assert ema.average[name].dtype == torch.float32
        assert torch.allclose(ema.average[name].double(), wanted[name], atol=1e-6)


def test_ema_owns_its_memory() -> None:
    w = torch.zeros(2)
    ema = Ema({"w": w}, decay=0.9)
    w += 1
    assert ema.average["w"].tolist() == [0, 0]


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(5, 4), "linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    decayed, plain = parameter_groups(net, 0.3)
    assert [id(p) for p in decayed["params"]] == [id(net["linear"].weight)]
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0.0
    assert len(plain["params"]) == 4


def test_the_tied_head_counts_as_an_embedding() -> None:
    denoiser = checkpoint(tokenizer()).denoiser
    decayed, plain = parameter_groups(denoiser, 0.1)
    tied = denoiser.net.head.weight
    assert all(p is not tied for p in decayed["params"])
    assert sum(p is tied for p in plain["params"]) == 1
    assert len(decayed["params"]) + len(plain["params"]) == len(list(denoiser.parameters()))
