"""Path planning: at each step a planner looks at masks and tokens alike, and says which sites stay decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.deferred import ask
from unmask.denoiser import Denoiser
from unmask.law import SiteLaw, State
from unmask.loss import require
from unmask.ops import expand_time
from unmask.processes.masked import Masked
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler
from unmask.samplers.unmask import Candidates, Order
from unmask.select.top_probability import log_confidence

_VALUES = 3  # the stream of `Unmask`, which this sampler is for eta = 0
_TOKENS = 1 << 18  # of a batch of canvases: bounds the memory, not the value
_ROUNDING = 1e-6  # by which a log-probability may be above 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """What a judge of decoded tokens may look at; nothing is evaluated before it is asked.

    Args:
        x: the canvas (b, *s).
        t: the time of each row's share of masks, (b,).
        masks: the masks that the step may reveal, boolean (b, *s).
        decoded: the tokens to judge, boolean (b, *s), n of them.
        process: the masked process.
        law: of x_0 | x_t.
        denoiser: the model.
        cond: its conditions.
        rng: the step's stream.
    """

    x: Int64[Tensor, "b *s"]
    t: Float[Tensor, " b"]
    masks: Bool[Tensor, "b *s"]
    decoded: Bool[Tensor, "b *s"]
    process: Masked
    law: SiteLaw
    denoiser: Denoiser
    cond: dict[str, Any]
    rng: Rng

    @cached_property
    def completed(self) -> Int64[Tensor, "b *s"]:
        """The canvas with a value at every mask: that which the step sets if it reveals the site."""
        if not bool(self.masks.any()):
            return self.x
        return self.x.masked_scatter(self.masks, self.law.sample_at(self.masks, self.rng.fold(_VALUES))[0])


Judge = Callable[[Draft], Tensor]
"""The log-chance (n,) that each of the n tokens of `decoded` is right, row-major; it must not depend on other rows."""


def own_probability(draft: Draft) -> Float[Tensor, " n"]:
    """Self-planning: log p(x_0^i = x_t^i | x_t), what the denoiser thinks of a token that it sees.

    For a denoiser that answers at decoded sites (`CategoricalDenoiser`). One with carry-over (`MaskedDenoiser`, or the
    exact law) is sure of every token, and re-masks none: take `hidden_probability`.
    """
    return draft.law.token_log_prob(draft.x, draft.decoded)


def hidden_probability(draft: Draft) -> Float[Tensor, " n"]:
    """Self-planning of any denoiser of masks: log p(x_0^i = x_t^i | x_t with a mask at i).

    It asks about as many canvases as there are tokens to judge, 2^18 tokens of them in a call.
    """
    sites = draft.decoded.flatten().nonzero().squeeze(1)
    return torch.cat([_hidden(draft, some) for some in sites.split(max(1, _TOKENS // draft.x[0].numel()))])


def _hidden(draft: Draft, sites: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    row, place = sites // draft.x[0].numel(), sites % draft.x[0].numel()
    known = draft.x[row]
    own = torch.zeros_like(known, dtype=torch.bool).flatten(1).scatter(1, place[:, None], True).reshape(known.shape)
    per_row = {k: v[row] if _of_rows(v, len(draft.x)) else v for k, v in draft.cond.items()}
    hidden = known.masked_fill(own, draft.process.mask_id)
    time = _time(draft.process, hidden, per_row.get("attention_mask"))
    return ask(draft.denoiser, hidden, time, sites=own, **per_row).token_log_prob(known, own)


def external(model: Callable[..., SiteLaw], *, t: float = 0.0) -> Judge:
    """BERT planning: log q(z_i | z) of another model on the completed canvas z, which has no masks.

    Args:
        model: (z, t, [attention_mask]) -> a law of sites that doubts what it sees: a masked language model without
            carry-over, or a denoiser of uniform noise.
        t: the time that it is told.
    """
    return partial(_external, model=model, t=t)


def learned(planner: Callable[..., SiteLaw]) -> Judge:
    """Trained planning: log p(z_i is right | z) of a planner on the completed canvas z.

    Args:
        planner: (z, t, [attention_mask]) -> a law of two classes a site, 0 for right: trained with `PathPlannerLoss`.
    """
    return partial(_learned, planner=planner)


def _external(draft: Draft, *, model: Callable[..., SiteLaw], t: float) -> Tensor:
    z = draft.completed
    return ask(model, z, torch.full_like(draft.t, t), sites=draft.decoded, **_padding(draft)).token_log_prob(
        z, draft.decoded
    )


def _learned(draft: Draft, *, planner: Callable[..., SiteLaw]) -> Tensor:
    return ask(planner, draft.completed, draft.t, sites=draft.decoded, **_padding(draft)).log_probs(draft.decoded)[:, 0]


def _padding(draft: Draft) -> dict[str, Any]:
    return {k: v for k, v in draft.cond.items() if k == "attention_mask" and v is not None}


def _of_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


@dataclass(frozen=True, kw_only=True)
class PathPlanning(Sampler):
    """After a step t -> s, the N - floor(N (1 - alpha_s)) sites of a row with the highest scores are decoded, of the N
    that may be set: masks among them are revealed, tokens that are not among them are re-masked.

        score_i = order_i for a mask,   eta * log p(token i is right) for a token.

    Re-masked tokens are decided anew in later steps, with more of the canvas known. eta = 0 re-masks nothing, and a
    larger eta more: eta weighs doubts about tokens against doubts about masks, so `order` is to be a log-probability
    as well (0 or less), such as `top_probability`.

    Heuristic: the judge, not the model's law, decides what stays. At eta = 0 it is `Unmask` with that order, to the
    bit, and as **exact**: one site at a time draws the model's law. In the paper the score of a mask is the probability
    of a value that is drawn first, which is not exact at eta = 0 either; here the order is asked before the draw.

    A canvas may start with fewer masks than the schedule has (a draft of another model): the worst tokens are then
    re-masked first. `network_calls` counts the denoiser, not an external or learned judge.

    Args:
        process: the masked process.
        judge: `hidden_probability`, `own_probability`, `external(model)` or `learned(planner)`, or another function.
        order: which masks first, a function of `unmask.select`.
        eta: strength of re-masking, >= 0.

    Raises:
        ValueError: for an eta out of range; in a step, for orders above 0 while eta > 0, and broken scores.

    References:
        Peng, Bezemek, Patel, Rector-Brooks, Yao, Bose, Tong, Chatterjee, "Path planning for masked diffusion model
        sampling", 2025, arXiv:2502.03540.
    """

    process: Masked
    judge: Judge = hidden_probability
    order: Order = log_confidence
    eta: float = 1.0

    def __post_init__(self) -> None:
        require(self, self.process, Masked, "it reveals and re-masks")
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise ValueError(f"PathPlanning: eta={self.eta}, wanted a finite number >= 0; 0 re-masks nothing")

    def prior(self, shape: Any, rng: Rng) -> State:
        return self.process.prior(shape, rng)

    def plan(
        self,
        denoiser: Denoiser,
        x: State,
        s: Tensor,
        rng: Rng,
        *,
        editable: State | None = None,
        **cond: Any,
    ) -> tuple[Draft, Bool[Tensor, "b *s"]]:
        """The canvas as its judge sees it, and the sites that are to be decoded at s; arguments as for `step`."""
        assert editable is None or isinstance(editable, Tensor)
        tokens, attention_mask = self.process._tokens(x, "PathPlanning"), cond.get("attention_mask")
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask
        masked, free = tokens == self.process.mask_id, real if editable is None else real & editable
        masks, decoded = masked & free, ~masked & free
        left = torch.floor(_count(free) * self.process.schedule.noise(s) + 1e-9).long()
        moves = (left > 0) if self.eta else (left > 0) & (left < _count(masks))  # rows in which there is a choice
        time = _time(self.process, tokens, attention_mask)
        asked = (masks & expand_time(moves | (left == 0), tokens)) | (decoded & expand_time(moves, tokens))
        law = ask(denoiser, tokens, time, sites=asked, **cond)
        judged = decoded & expand_time(moves, tokens) if self.eta else torch.zeros_like(decoded)
        draft = Draft(
            x=tokens,
            t=time,
            masks=masks,
            decoded=judged,
            process=self.process,
            law=law,
            denoiser=denoiser,
            cond=cond,
            rng=rng,
        )
        scores = self._scores(draft, masks & expand_time(moves, tokens), decoded, s)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
        chosen = (rank < (_count(free) - left)[:, None]).reshape(tokens.shape) & free
        return draft, torch.where(
            expand_time(moves, tokens), chosen, decoded | (masks & expand_time(left == 0, tokens))
        )

    def _scores(self, draft: Draft, masks: Tensor, decoded: Tensor, s: Tensor) -> Float[Tensor, "b l"]:
        """Scores of the sites, flattened; at eta = 0 the decoded ones come first; fixed sites and padding last."""
        found = Candidates(
            process=self.process,
            order=self.order,
            x=draft.x,
            where=masks,
            t=draft.t,
            s=s,
            rng=draft.rng,
            ask_at=lambda sites: draft.law,
        )
        shape = draft.x.shape
        scores = torch.full(shape, -torch.inf, dtype=torch.float64, device=draft.x.device)
        if bool(masks.any()):
            scores = found.scores(self.order).double().reshape(shape)
        if self.eta == 0:
            return scores.masked_fill(decoded, torch.inf).flatten(1)
        highest = float(scores.max()) if scores.numel() else 0.0
        if highest > _ROUNDING:
            raise ValueError(
                f"PathPlanning: the order {self.order} gave a score of {highest:.3g}, which eta = {self.eta} cannot "
                "weigh against log-probabilities of tokens; wanted an order of log-probabilities, such as "
                "top_probability(), or eta = 0"
            )
        if bool(draft.decoded.any()):
            doubts = self.eta * self._judged(draft)
            scores = scores.masked_scatter(draft.decoded, doubts.clamp(min=torch.finfo(torch.float64).min))
        return scores.flatten(1)

    def _judged(self, draft: Draft) -> Float[Tensor, " n"]:
        found, count = self.judge(draft).double(), int(draft.decoded.sum())
        broken = bool(found.isnan().any())
        if found.shape != (count,) or broken:
            raise ValueError(
                f"PathPlanning: {self.judge} returned scores of shape {tuple(found.shape)}{', some NaN' * broken}; "
                f"wanted {count} log-probabilities, one for each token of `decoded` in row-major order"
            )
        return found

    def step(
        self,
        denoiser: Denoiser,
        x: State,
        t: Tensor,
        s: Tensor,
        carry: Carry,
        rng: Rng,
        *,
        editable: State | None = None,
        **cond: Any,
    ) -> tuple[State, Carry]:
        draft, chosen = self.plan(denoiser, x, s, rng, editable=editable, **cond)
        revealed, remasked = draft.masks & chosen, draft.decoded & ~chosen
        after = draft.x.masked_fill(remasked, self.process.mask_id)
        commit = torch.full(after.shape, torch.nan, device=after.device)
        if bool(revealed.any()):
            values, scores = draft.law.sample_at(revealed, rng.fold(_VALUES))
            after = after.masked_scatter(revealed, values)
            commit = commit.masked_scatter(revealed, scores.to(commit.dtype))
        return after, Carry(commit_log_prob=commit, remasked=remasked)


def _count(where: Bool[Tensor, "b *s"]) -> Int64[Tensor, " b"]:
    return where.flatten(1).sum(1)


def _time(process: Masked, x: Int64[Tensor, "b *s"], attention_mask: Tensor | None) -> Float[Tensor, " b"]:
    """The time at which a row's share of masks, padding left out, is the expected one."""
    real = torch.ones_like(x, dtype=torch.bool) if attention_mask is None else attention_mask
    share = _count((x == process.mask_id) & real).double() / _count(real).clamp(min=1)
    return process.schedule.inverse(1.0 - share)
