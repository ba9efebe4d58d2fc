"""Learning-rate schedules, weight-decay groups and the moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unmask.training.config import TrainingConfig


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """The learning rate of optimizer step `step` (counted from 0) as a fraction of the peak.

        warm-up   (step + 1) / warmup_steps
        cosine    m + (1 - m) (1 + cos(pi u)) / 2
        wsd       m + (1 - m) (1 - u)             u = share of the decay behind us, 1 at the last step; m = min_lr_ratio

    References: Loshchilov & Hutter, 2016, arXiv:1608.03983 (cosine); Hu et al., 2024, arXiv:2404.06395 (wsd).
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if step < config.decay_start:
        return 1.0
    u = min(1.0, (step + 1 - config.decay_start) / max(1, config.steps - config.decay_start))
    shape = 0.5 * (1 + math.cos(math.pi * u)) if config.lr_schedule == "cosine" else 1 - u
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: matrices with weight decay; norms, biases and embeddings (tied heads too) without."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in module.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    plain = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Ema:
    """An exponential moving average of named weights, in fp32 whatever they are kept in.

        m_k = d_k m_{k-1} + (1 - d_k) w_k,   d_k = min(decay, (1 + k) / (10 + k)),   m_{-1} = the first weights

    Sharded weights (DTensor) give sharded averages: nothing is gathered here.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.average = {name: w.detach().float().clone() for name, w in weights.items()}

    @torch.no_grad()
    def update(self, step: int, weights: dict[str, Tensor]) -> None:
        """Take in the weights after optimizer step `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.average.items():
            average.lerp_(weights[name].detach().float(), 1 - decay)
