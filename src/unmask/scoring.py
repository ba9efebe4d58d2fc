"""Bits per token and per character of texts under a text model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.data.canvas import build_canvas
from unmask.errors import UserError
from unmask.loss import Loss
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.autoregressive import AutoregressiveNLL
from unmask.losses.nelbo import NELBO
from unmask.process import DiscreteProcess
from unmask.processes.masked import Masked
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
        num_tokens, num_characters: of the text; no end mark is counted.
    """

    nats: float
    nats_se: float
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


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of several texts.

    Args:
        documents: one per text, in order.
        total: of all texts together (sums of nats, tokens and characters).
        bound: whether the figures are upper bounds (diffusion) or exact (autoregressive).
        estimator: which loss, with how many draws per window.
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
    if num_draws < 2:
        raise UserError(f"score: num_draws={num_draws}, wanted at least 2, for the standard error to exist")
    encoded = [model.tokenizer.encode(text) for text in texts]
    empty = [i + 1 for i, ids in enumerate(encoded) if not ids]
    if empty or not encoded:
        raise UserError(f"score: {f'text number {empty[0]} is empty' if empty else 'got no text'}; nothing to score")
    loss = _loss(model)
    draws = 1 if isinstance(loss, AutoregressiveNLL) else num_draws
    owner, windows = _windows(encoded, model.context)
    nats = _window_nats(model, loss, windows, Rng(seed), draws, batch_size, on_progress or _silent)
    per_document = torch.zeros(draws, len(encoded), dtype=torch.float64).index_add(1, torch.tensor(owner), nats)
    lengths = [(len(ids), len(text)) for ids, text in zip(encoded, texts, strict=True)]
    return Scores(
        documents=tuple(
            _score(column, *length) for column, length in zip(per_document.unbind(1), lengths, strict=True)
        ),
        total=_score(per_document.sum(1), sum(n for n, _ in lengths), sum(n for _, n in lengths)),
        bound=not isinstance(loss, AutoregressiveNLL),
        estimator=type(loss).__name__ + ("" if draws == 1 else f", {draws} draws per window"),
        window=model.context,
    )


def _loss(model: TextModel) -> Loss:
    """The bound with the least variance that fits the model."""
    process = model.checkpoint.process
    if model.autoregressive:
        return AutoregressiveNLL()
    if isinstance(process, Masked):
        return AnyOrderNLL(process=process)
    if isinstance(process, DiscreteProcess):
        return NELBO(process=process)
    raise UserError(f"score: a {type(process).__name__} process has no likelihood bound on tokens; use a discrete one")


def _windows(encoded: Sequence[Sequence[int]], length: int) -> tuple[list[int], list[Sequence[int]]]:
    """(document of each window, windows): consecutive, of `length` tokens but for a document's last one."""
    owner, windows = [], []
    for document, ids in enumerate(encoded):
        for begin in range(0, len(ids), length):
            owner.append(document)
            windows.append(ids[begin : begin + length])
    return owner, windows


def _window_nats(
    model: TextModel,
    loss: Loss,
    windows: Sequence[Sequence[int]],
    rng: Rng,
    draws: int,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> Float[Tensor, "draws windows"]:
    """Nats of every window under every draw, float64. Draws are keyed by (draw, window), so batches do not matter."""
    total = -(-len(windows) // batch_size) * draws
    columns: list[Tensor] = []
    for done, begin in enumerate(range(0, len(windows), batch_size)):
        rows = torch.arange(begin, min(begin + batch_size, len(windows)))
        canvas = build_canvas([windows[i] for i in rows.tolist()], mask_id=0, pad_id=model.tokenizer.pad_id)
        canvas = canvas.to(model.device)
        stack: list[Tensor] = []
        for draw in range(draws):
            with torch.no_grad():
                stream = rng.fold(draw).rows(rows)
                nats = loss(model.denoiser, canvas.tokens, stream, attention_mask=canvas.attention_mask)
            stack.append(nats.double().cpu())
            on_progress(done * draws + draw + 1, total)
        columns.append(torch.stack(stack))
    return torch.cat(columns, 1)


def _score(nats: Float[Tensor, " draws"], num_tokens: int, num_characters: int) -> Score:
    error = float(nats.std() / math.sqrt(len(nats))) if len(nats) > 1 else 0.0
    return Score(nats=float(nats.mean()), nats_se=error, num_tokens=num_tokens, num_characters=num_characters)


def _silent(done: int, total: int) -> None:
    """No progress."""
