"""Held-out figures of a text model while and after it is trained."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmask.data.cache import WindowDataset
from unmask.denoiser import Denoiser
from unmask.loss import Loss
from unmask.metrics.ngram import NGram
from unmask.rng import Rng

_BATCH = 32
_FIT_CHARACTERS = 20_000_000


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out text and how to measure a model on it.

    Args:
        texts: the documents.
        windows: the same, tokenized and packed.
        loss: nats per example.
        seed: of the draws.
    """

    texts: list[str]
    windows: WindowDataset
    loss: Loss
    seed: int

    def figures(
        self,
        denoiser: Denoiser,
        *,
        draws: int = 1,
        max_windows: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Held-out bits per character, with the standard error over windows.

        The error counts both the choice of the windows and the draws of the bound. End-of-text tokens are paid for.

        Args:
            denoiser: in evaluation mode.
            draws: of the bound, per window.
            max_windows: use only so many, spread evenly over the text.
            on_progress: called with (windows done, windows in all).
        """
        total = len(self.windows)
        count = min(total, max_windows or total)
        chosen = torch.arange(count) * total // count
        parts: list[Tensor] = []
        for rows in chosen.split(_BATCH):
            parts.append(self._nats(denoiser, rows, draws))
            if on_progress is not None:
                on_progress(sum(map(len, parts)), count)
        nats = torch.cat(parts)
        tokens = min(count * self.windows.length, self.windows.num_tokens)
        error = float(nats.std()) * math.sqrt(count) if count > 1 else 0.0
        bits = self.windows.num_tokens / self.windows.num_characters / math.log(2) / tokens
        return {
            "held_out_bits_per_character": float(nats.sum()) * bits,
            "held_out_bits_per_character_se": error * bits,
        }

    @torch.no_grad()
    def _nats(self, denoiser: Denoiser, rows: Tensor, draws: int) -> Tensor:
        device = next(denoiser.parameters()).device
        batch = {k: v.to(device) for k, v in self.windows.batch(rows).items() if v is not None}
        tokens = batch.pop("tokens")
        total = torch.zeros(len(rows), dtype=torch.float64)
        for draw in range(draws):
            rng = Rng(self.seed).fold(draw).rows(rows)
            total += self.loss(denoiser, tokens, rng, **batch).double().cpu()
        return total / draws

    def references(self, train_texts: list[str]) -> dict[str, tuple[float, float]]:
        """Bits per character (value, standard error) of n-gram models fitted on the same training text.

        From more than 20 million characters only the first ones are counted, and the name says so.
        """
        texts, used, size = [], 0, sum(map(len, train_texts))
        for text in train_texts:
            texts.append(text[: _FIT_CHARACTERS - used])
            used += len(texts[-1])
            if used >= _FIT_CHARACTERS:
                break
        suffix = "" if used == size else f" of {used / 1e6:.0f} M characters"
        names = {"unigram": 1, "order-4 n-gram": 4}
        return {
            name + suffix: NGram(order=order).fit(texts).bits_per_character(self.texts) for name, order in names.items()
        }


def seconds_per_step(denoiser: Denoiser, loss: Loss, windows: Any, batch_size: int, *, steps: int = 8) -> float:
    """About how long an optimizer step takes: the fastest of some passes of a copy, and a tenth."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = copy.deepcopy(denoiser).train().to(device)
    times = []
    for step in range(steps):
        begun = time.perf_counter()
        rows = torch.arange(batch_size) % len(windows)
        batch = {k: v.to(device) for k, v in windows.batch(rows).items() if v is not None}
        tokens = batch.pop("tokens")
        nats = loss(model, tokens, Rng(0).fold(step).rows(rows), **batch).sum()
        nats.backward()
        nats.item()
        times.append(time.perf_counter() - begun)
    return min(times) * 1.1
