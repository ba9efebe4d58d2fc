"""Bits per token and per character of texts under a text model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64
from torch import Tensor

from unmask.data.canvas import build_canvas
from unmask.errors import UserError
from unmask.metrics.estimators import Estimator, LeftToRight
from unmask.metrics.likelihood import default_estimator, log_likelihood, ratio_spread
from unmask.process import DiscreteProcess
from unmask.rng import Rng

if TYPE_CHECKING:
    from unmask.text import TextModel


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one text, or all of them, costs a model.

    Args:
        nats: -log p, or an upper bound of it.
        nats_se: its standard error over the draws of the estimator (0 for an exact figure). It says how well the figure
            of the model for these texts is known, not how much texts differ.
        nats_per_token_spread: standard error of nats per token over windows, draws included: how far the figure would
            move with other text of the kind. None for a single window.
        num_tokens, num_characters: of the text; no end mark is counted.
    """

    nats: float
    nats_se: float
    nats_per_token_spread: float | None
    num_tokens: int
    num_characters: int

    @property
    def bits_per_token(self) -> float:
        return self.nats / math.log(2) / self.num_tokens

    @property
    def bits_per_token_se(self) -> float:
        return self.nats_se / math.log(2) / self.num_tokens

    @property
    def bits_per_character(self) -> float:
        return self.nats / math.log(2) / self.num_characters

    @property
    def bits_per_character_se(self) -> float:
        return self.nats_se / math.log(2) / self.num_characters

    @property
    def bits_per_character_spread(self) -> float | None:
        """The spread over windows, per character; the characters of a window are taken in proportion to its tokens."""
        if self.nats_per_token_spread is None:
            return None
        return self.nats_per_token_spread / math.log(2) * self.num_tokens / self.num_characters


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of several texts.

    Args:
        documents: one per text, in order.
        total: of all texts together (sums of nats, tokens and characters).
        bound: whether the figures are upper bounds (diffusion) or exact (autoregressive).
        estimator: which estimator, with how many network calls per window.
        window: tokens per window; longer texts were cut into consecutive windows, each scored on its own.
    """

    documents: tuple[Score, ...]
    total: Score
    bound: bool
    estimator: str
    window: int


def score_documents(
    model: TextModel,
    texts: Sequence[str],
    *,
    num_draws: int = 16,
    seed: int = 0,
    batch_size: int = 32,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """See `TextModel.score`."""
    if num_draws < 3:
        raise UserError(f"score: num_draws={num_draws}, wanted at least 3 network calls per window")
    encoded = [model.tokenizer.encode(text) for text in texts]
    empty = [i + 1 for i, ids in enumerate(encoded) if not ids]
    if empty or not encoded:
        raise UserError(f"score: {f'text number {empty[0]} is empty' if empty else 'got no text'}; nothing to score")
    estimator = _estimator(model)
    calls = 1 if isinstance(estimator, LeftToRight) else num_draws
    owner, windows = _windows(encoded, model.context)
    found = _window_nats(model, estimator, windows, Rng(seed), calls, batch_size, on_progress or _silent)
    sizes = torch.tensor([len(window) for window in windows])
    documents = [_score(found[:, owner == i], sizes[owner == i], len(text)) for i, text in enumerate(texts)]
    return Scores(
        documents=tuple(documents),
        total=_score(found, sizes, sum(map(len, texts))),
        bound=estimator.kind == "bound",
        estimator=type(estimator).__name__ + ("" if calls == 1 else f", {calls} network calls per window"),
        window=model.context,
    )


def _estimator(model: TextModel) -> Estimator:
    """The one with the least standard error per network call that fits the model."""
    process = model.checkpoint.process
    if not model.autoregressive and not isinstance(process, DiscreteProcess):
        raise UserError(
            f"score: a {type(process).__name__} process has no likelihood bound on tokens; use a discrete one"
        )
    return default_estimator(model.denoiser, process)


def _windows(encoded: Sequence[Sequence[int]], length: int) -> tuple[Tensor, list[Sequence[int]]]:
    """(document of each window, windows): consecutive, of `length` tokens but for a document's last one."""
    owner, windows = [], []
    for document, ids in enumerate(encoded):
        for begin in range(0, len(ids), length):
            owner.append(document)
            windows.append(ids[begin : begin + length])
    return torch.tensor(owner), windows


def _window_nats(
    model: TextModel,
    estimator: Estimator,
    windows: Sequence[Sequence[int]],
    rng: Rng,
    calls: int,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> Float64[Tensor, "2 windows"]:
    """Nats of every window and their standard errors. Draws are keyed by the window, so batches do not matter."""
    batches = torch.arange(len(windows)).split(batch_size)
    done = itertools.count(1)
    hook = model.denoiser.register_forward_hook(lambda *_: on_progress(next(done), len(batches) * calls))
    try:
        columns = [_batch_nats(model, estimator, windows, rows, rng, calls) for rows in batches]
    finally:
        hook.remove()
    return torch.cat(columns, 1)


def _batch_nats(
    model: TextModel,
    estimator: Estimator,
    windows: Sequence[Sequence[int]],
    rows: Tensor,
    rng: Rng,
    calls: int,
) -> Float64[Tensor, "2 windows"]:
    canvas = build_canvas([windows[i] for i in rows.tolist()], mask_id=0, pad_id=model.tokenizer.pad_id)
    canvas = canvas.to(model.device)
    found = log_likelihood(
        model.denoiser,
        model.checkpoint.process,
        canvas.tokens,
        rng=rng.rows(rows),
        estimator=estimator,
        num_calls=calls,
        attention_mask=canvas.attention_mask,
    )
    return torch.stack([-found.log_prob, found.standard_error]).double().cpu()


def _score(found: Float64[Tensor, "2 windows"], sizes: Tensor, num_characters: int) -> Score:
    nats, errors = found
    spread = ratio_spread(nats, sizes.double())
    return Score(
        nats=float(nats.sum()),
        nats_se=float(errors.square().sum().sqrt()),
        nats_per_token_spread=None if math.isnan(spread) else spread,
        num_tokens=int(sizes.sum()),
        num_characters=num_characters,
    )


def _silent(done: int, total: int) -> None:
    """No progress."""
