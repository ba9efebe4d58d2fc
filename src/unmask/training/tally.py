"""Running sums of a run that stay on the device until somebody asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Totals:
    """Sums over all processes since the last look, and the first step that was not finite (or -1)."""

    nats: float
    tokens: int
    grad_norm: float
    bad_step: int


class Tally:
    """Nats and tokens since the last look, the last gradient norm and the first bad step, all on `device`."""

    def __init__(self, device: torch.device) -> None:
        self._nats = torch.zeros((), dtype=torch.float64, device=device)
        self._tokens = torch.zeros((), dtype=torch.int64, device=device)
        self._norm = torch.zeros((), device=device)
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, step: int, nats: Tensor, tokens: Tensor, norm: Tensor) -> None:
        """Count one step: this process's nats, all processes' tokens."""
        first = ~torch.isfinite(nats + 0.0 * norm) & (self._bad_step < 0)
        self._bad_step = torch.where(first, step, self._bad_step)
        self._nats, self._tokens, self._norm = self._nats + nats, self._tokens + tokens, norm

    def take(self, accelerator: Any) -> Totals:
        """The sums, which start anew. Collective, and the one place that waits for the device."""
        nats = float(accelerator.reduce(self._nats, "sum"))
        bad = accelerator.gather(self._bad_step.reshape(1))
        bad = bad[bad >= 0]
        totals = Totals(nats, int(self._tokens), float(self._norm), int(bad.min()) if len(bad) else -1)
        self._nats, self._tokens = torch.zeros_like(self._nats), torch.zeros_like(self._tokens)
        return totals
