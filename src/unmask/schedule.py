"""Noise schedules: how much of the data is left at time t."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Schedule(ABC):
    """The signal level alpha(t) of a forward process, decreasing from alpha(0) = 1 (data) to alpha(1) (noise).

    A schedule defines `alpha` in float64; the derivative and the inverse follow by autodiff and bisection. A subclass
    may give closed forms of them; the schedule contract then proves both equal.

    `t` is a float64 tensor of any shape with values in [0, 1]; all results have its shape.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The probability (or amplitude) of the data at time t."""

    def noise(self, t: Tensor) -> Tensor:
        """1 - alpha(t); override where the subtraction would cancel near t = 0."""
        return 1.0 - self.alpha(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        """d alpha / dt, by autodiff."""
        learning = torch.is_grad_enabled()  # a learned schedule needs the gradient of its slope, too
        with torch.enable_grad():
            t = t.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.alpha(t).sum(), t, create_graph=learning)
        return slope if learning else slope.detach()

    def inverse(self, a: Tensor) -> Tensor:
        """The time t at which alpha(t) = a, by bisection (60 halvings: float64 resolution)."""
        low, high = torch.zeros_like(a), torch.ones_like(a)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.alpha(middle) < a
            high, low = torch.where(below, middle, high), torch.where(below, low, middle)
        return (low + high) / 2


class GaussianSchedule(Schedule):
    """A schedule with a noise amplitude as well: x_t = alpha(t) x_0 + sigma(t) eps."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise at time t."""
