"""Denoisers: networks seen as laws of the clean data given the noisy state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from unmask.law import Law, State


class Denoiser(nn.Module, ABC):
    """The law of x_0 given x_t, whatever its network predicts (x_0, a score ratio, noise, a velocity).

    The conversion from the network's output to a true law is the subclass's whole job, so that processes, losses,
    samplers and guidance never need to know the parametrisation. Guidance is a Denoiser that wraps another.
    """

    @abstractmethod
    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Law:
        """The law of x_0 given x_t.

        Args:
            xt: the noisy state, shape (b, *s).
            t: times, shape (b,), float64 in [0, 1].
            attention_mask: (b, l), True at real tokens; what stands at padding must not change the law elsewhere.
            cond: further conditions (document ids, labels), handed on to the network.
        """

    def config(self) -> dict[str, Any]:
        """The constructor's arguments apart from the network, as JSON values, for checkpoints."""
        return {}


class Forwarding(Denoiser):
    """Another denoiser, listened to: what else it offers is still to be had."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)
