"""Numbers out of range are refused by name."""

from __future__ import annotations

import re

import pytest

from unmask.errors import UserError
from unmask.training.config import TrainingConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("learning_rate", 0.0),
        ("warmup_steps", 101),
        ("warmup_steps", -1),
        ("lr_schedule", "linear"),
        ("min_lr_ratio", 1.5),
        ("wsd_decay_fraction", 0.0),
        ("weight_decay", -0.1),
        ("betas", (0.9, 1.0)),
        ("ema_decay", 1.0),
        ("max_grad_norm", 0.0),
        ("mixed_precision", "fp16"),
        ("log_every", 0),
        ("eval_every", 0),
        ("sample_every", -2),
        ("checkpoint_every", 0),
        ("checkpoint_seconds", 0.0),
    ],
)
def test_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    config = TrainingConfig(steps=100, batch_size=8, warmup_steps=10)
    object.__setattr__(config, name, value)  # past the type checks that tests switch on
    with pytest.raises(UserError, match=re.escape(f"{name}={value!r}, wanted")):
        config.__post_init__()


def test_warm_up_must_end_before_the_decay_of_wsd() -> None:
    with pytest.raises(UserError, match="at most 80, where the decay of wsd begins"):
        TrainingConfig(steps=100, batch_size=8, warmup_steps=90, lr_schedule="wsd", wsd_decay_fraction=0.2)
    TrainingConfig(steps=100, batch_size=8, warmup_steps=90)
