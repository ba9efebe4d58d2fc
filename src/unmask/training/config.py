"""What a training run is: one frozen dataclass, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unmask.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The numbers of a training run. Everything random follows from `seed` and the step, never from the topology.

    Args:
        steps: optimizer steps in all.
        batch_size: sequences per optimizer step, over all processes and micro-batches.
        micro_batch_size: sequences per forward pass of one process; None takes batch_size / processes. It trades
            memory for speed and leaves the gradient unchanged.
        learning_rate: peak learning rate.
        warmup_steps: linear warm-up, in steps.
        lr_schedule: "cosine" falls to min_lr_ratio over the whole run; "wsd" stays at the peak and falls linearly over
            the last wsd_decay_fraction of the run, so that a run can be extended before its decay begins.
        min_lr_ratio: final learning rate as a fraction of the peak.
        wsd_decay_fraction: the share of the steps that decay under "wsd".
        weight_decay: AdamW's, on matrices only (not on norms, embeddings or biases).
        betas: AdamW's.
        ema_decay: decay of the exponential moving average of the weights, which is then what is evaluated, sampled and
            exported; None keeps none. The decay warms up as min(ema_decay, (1 + k) / (10 + k)) at step k.
        max_grad_norm: global gradient norm above which gradients are scaled down; None never clips.
        mixed_precision: "bf16" runs the forward pass under autocast; weights, optimizer and EMA stay in fp32.
        compile: torch.compile the network.
        seed: of data order, corruption and dropout.
        log_every, eval_every, sample_every, checkpoint_every: in steps; None never (the last step always evaluates
            and writes a checkpoint).
        checkpoint_seconds: also write a checkpoint when this many seconds have passed since the last one.
        tensorboard: also write scalars and samples for TensorBoard.

    Raises:
        UserError: a number out of its range, named.
    """

    steps: int
    batch_size: int
    micro_batch_size: int | None = None
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    lr_schedule: Literal["cosine", "wsd"] = "cosine"
    min_lr_ratio: float = 0.1
    wsd_decay_fraction: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    ema_decay: float | None = 0.999
    max_grad_norm: float | None = 1.0
    mixed_precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    seed: int = 0
    log_every: int = 10
    eval_every: int | None = 500
    sample_every: int | None = 500
    checkpoint_every: int | None = 500
    checkpoint_seconds: float | None = 900.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every"):
            self._require(name, getattr(self, name) >= 1, "an integer >= 1")
        for name in ("micro_batch_size", "eval_every", "sample_every", "checkpoint_every"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "an integer >= 1, or None")
        for name in ("checkpoint_seconds", "max_grad_norm"):
            value = getattr(self, name)
            self._require(name, value is None or value > 0, "a number > 0, or None")
        self._require("learning_rate", self.learning_rate > 0, "a number > 0")
        self._require("warmup_steps", 0 <= self.warmup_steps <= self.steps, f"between 0 and steps={self.steps}")
        self._require("min_lr_ratio", 0 <= self.min_lr_ratio <= 1, "between 0 and 1")
        self._require("weight_decay", self.weight_decay >= 0, "a number >= 0")
        self._require("betas", all(0 <= b < 1 for b in self.betas), "two numbers in [0, 1)")
        self._require("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "in (0, 1), or None")
        self._require("lr_schedule", self.lr_schedule in ("cosine", "wsd"), '"cosine" or "wsd"')
        self._require("mixed_precision", self.mixed_precision in ("no", "bf16"), '"no" or "bf16"')
        self._require("wsd_decay_fraction", 0 < self.wsd_decay_fraction <= 1, "in (0, 1]")
        fits = self.lr_schedule == "cosine" or self.warmup_steps <= self.decay_start
        self._require("warmup_steps", fits, f"at most {self.decay_start}, where the decay of wsd begins")

    def _require(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise UserError(f"TrainingConfig: {name}={getattr(self, name)!r}, wanted {wanted}")

    @property
    def decay_start(self) -> int:
        """The first step whose learning rate is below the peak: after the warm-up, or where wsd's decay begins."""
        if self.lr_schedule == "cosine":
            return self.warmup_steps
        return self.steps - round(self.wsd_decay_fraction * self.steps)
