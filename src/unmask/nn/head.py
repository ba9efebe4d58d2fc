"""The vocabulary projection, with log-probabilities of chosen tokens in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

_MAX_ENTRIES = 1 << 22  # logits alive at once; 16 MB of float32 stay near the caches
_MAX_ROWS = 4096  # more rows would leave chunks of the vocabulary too narrow for a fast matrix product


class Head(nn.Module):
    """Logits h W^T of hidden vectors h (n, d); no bias, so that W may be the token embedding.

    Args:
        dim: d, size of a hidden vector.
        vocab_size: v, number of states.
    """

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self,
        hidden: Float[Tensor, "n d"],
        targets: Int64[Tensor, " n"] | None = None,
        *,
        forbidden: int | None = None,
    ) -> Tensor:
        """Logits (n, v), or with `targets` what `token_log_prob` says."""
        if targets is None:
            return F.linear(hidden, self.weight)
        if hidden.shape[0] * self.weight.shape[0] <= _MAX_ENTRIES:
            return _plain(F.linear(hidden, self.weight), targets, forbidden)
        met = int(targets.min()), int(targets.max())
        if met[0] < 0 or met[1] >= self.weight.shape[0]:
            raise IndexError(f"Head: targets span {met[0]}..{met[1]}, wanted 0..{self.weight.shape[0] - 1}")
        scores: Tensor = _TokenLogProb.apply(hidden, self.weight, targets, forbidden, _dtype(hidden))
        return scores

    def token_log_prob(
        self, hidden: Float[Tensor, "n d"], targets: Int64[Tensor, " n"], *, forbidden: int | None = None
    ) -> Float[Tensor, " n"]:
        """log softmax(h W^T)[target], nats, in float32 at least; the state `forbidden` has probability zero.

        Never holds more than 4 million logits: above that, chunks of the vocabulary are reduced one by one, and made
        again in the backward pass. Gradients reach the hidden vectors and the weight for any upstream gradient.

        Raises:
            IndexError: a target is not one of the v states.

        References:
            Wijmans et al., "Cut your losses in large-vocabulary language models", 2024, arXiv:2411.09009.
        """
        # through __call__, so that the hooks of a sharding wrapper gather the weight first
        scores: Tensor = self(hidden, targets, forbidden=forbidden)
        return scores


def _dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _plain(logits: Tensor, targets: Tensor, forbidden: int | None) -> Tensor:
    logits = _wide(logits)
    if forbidden is not None:
        logits = logits.index_fill(1, torch.tensor([forbidden], device=logits.device), -torch.inf)
    return -F.cross_entropy(logits, targets, reduction="none")


class _Chunks:
    """Walks over the logits (n, v) in pieces of at most `_MAX_ENTRIES`, in one buffer that is used again."""

    def __init__(self, hidden: Tensor, weight: Tensor, forbidden: int | None, dtype: torch.dtype) -> None:
        self.hidden, self.weight, self.forbidden = hidden.to(dtype), weight.to(dtype), forbidden
        self.rows = min(max(len(hidden), 1), _MAX_ROWS)
        self.columns = min(len(weight), max(_MAX_ENTRIES // self.rows, 1))
        self.wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        self.product = self.hidden.new_empty(self.rows * self.columns)

    def row_slices(self) -> Iterator[slice]:
        for start in range(0, len(self.hidden), self.rows):
            yield slice(start, min(start + self.rows, len(self.hidden)))

    def column_slices(self) -> Iterator[slice]:
        for start in range(0, len(self.weight), self.columns):
            yield slice(start, min(start + self.columns, len(self.weight)))

    def logits(self, rows: slice, columns: slice) -> Tensor:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        out = self.product[: height * width].view(height, width)
        logits = _wide(torch.mm(self.hidden[rows], self.weight[columns].T, out=out))
        if self.forbidden is not None and columns.start <= self.forbidden < columns.stop:
            logits[:, self.forbidden - columns.start] = -torch.inf
        return logits


class _TokenLogProb(torch.autograd.Function):
    """Keeps the log-sum-exp (n,) of each row; the backward pass makes the probabilities again, chunk by chunk.

    Chunks run over the vocabulary, so that each slice of the weight's gradient is written once.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, forbidden: int | None, dtype: torch.dtype
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(hidden, weight, forbidden, dtype)
            log_sum = hidden.new_empty(len(hidden), dtype=chunks.wide)
            chosen = torch.empty_like(log_sum)
            for rows in chunks.row_slices():
                log_sum[rows], chosen[rows] = _reduce(chunks, rows, targets[rows])
        ctx.save_for_backward(hidden, weight, targets, log_sum)
        ctx.forbidden, ctx.dtype = forbidden, dtype
        return chosen - log_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets, log_sum = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            chunks = _Chunks(hidden, weight, ctx.forbidden, ctx.dtype)
            grad_hidden = torch.zeros_like(hidden, dtype=grad.dtype) if ctx.needs_input_grad[0] else None
            grad_weight = torch.zeros_like(weight, dtype=grad.dtype) if ctx.needs_input_grad[1] else None
            for rows in chunks.row_slices():
                scaled = (hidden[rows] * grad[rows, None]).to(ctx.dtype)
                for columns in chunks.column_slices():
                    residual = chunks.logits(rows, columns).sub_(log_sum[rows, None]).exp_()
                    index, inside = _local(targets[rows], columns)
                    residual.scatter_add_(1, index[:, None], -inside.to(residual.dtype)[:, None])
                    residual = residual.to(ctx.dtype)
                    if grad_hidden is not None:
                        _accumulate(grad_hidden[rows], residual, chunks.weight[columns])
                    if grad_weight is not None:
                        _accumulate(grad_weight[columns], residual.T, scaled)
            if grad_hidden is not None:
                grad_hidden = grad_hidden.mul_(-grad[:, None]).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight = grad_weight.neg_().to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None


def _reduce(chunks: _Chunks, rows: slice, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over the vocabulary, and the target's logit: (rows,) each."""
    top = torch.full_like(targets, -torch.inf, dtype=chunks.wide)
    total, chosen = torch.zeros_like(top), torch.zeros_like(top)
    for columns in chunks.column_slices():
        logits = chunks.logits(rows, columns)
        index, inside = _local(targets, columns)
        chosen += torch.where(inside, logits.gather(1, index[:, None]).squeeze(1), 0.0)
        peak = torch.maximum(top, logits.amax(1)).clamp_(min=torch.finfo(chunks.wide).min)  # never -inf - -inf
        total = total * torch.exp(top - peak) + logits.sub_(peak[:, None]).exp_().sum(1)
        top = peak
    return top + total.log(), chosen


def _local(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Targets as indices into a chunk of the vocabulary, and which of them lie inside it."""
    inside = (targets >= columns.start) & (targets < columns.stop)
    return (targets - columns.start).clamp(0, columns.stop - columns.start - 1), inside


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:  # the product leaves in half precision, the sum must not
        total.add_(a @ b)
