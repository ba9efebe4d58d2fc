"""Traces: what happened to each site of a canvas, step by step, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from unmask.data.tokenizers import Tokenizer
from unmask.law import State
from unmask.loops import Step


@dataclass(frozen=True, kw_only=True)
class Event:
    """A site was set to `text`, or taken back to the mask (None), in step number `step` (from 1)."""

    step: int
    site: int
    text: str | None
    confidence: float | None


@dataclass(frozen=True, kw_only=True)
class RowTrace:
    """One sample: the text of each site before the first step (None: masked), and the events in order."""

    initial: tuple[str | None, ...]
    events: tuple[Event, ...]


@dataclass(kw_only=True)
class Trace:
    """All that a viewer needs to play a run: rows, and per step the time after it, network calls and seconds."""

    rows: list[RowTrace] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    network_calls: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def record(steps: Iterable[Step], tokenizer: Tokenizer, *, attention_mask: Tensor | None = None) -> Trace:
    """Run through `steps` and keep what a viewer shows.

    Args:
        steps: all steps of one run on text canvases (b, l).
        tokenizer: names the tokens. A character spread over several tokens shows at the one that completes it.
        attention_mask: (b, l), True at real sites; padding is left out.

    Raises:
        ValueError: there is no step.
    """
    kept = list(steps)
    if not kept:
        raise ValueError("record: got no step; wanted those of one run, as TextModel.stream gives them")
    trace = Trace(
        times=[step.s for step in kept],
        network_calls=[step.network_calls for step in kept],
        seconds=[step.seconds for step in kept],
    )
    for row in range(len(_tensor(kept[0].canvas))):
        real = None if attention_mask is None else attention_mask[row].tolist()
        trace.rows.append(_row_trace(kept, row, real, tokenizer))
    return trace


def _row_trace(steps: list[Step], row: int, real: list[bool] | None, tokenizer: Tokenizer) -> RowTrace:
    final = _tensor(steps[-1].canvas)[row].tolist()
    sites = [i for i in range(len(final)) if real is None or real[i]]
    shown = dict(zip(sites, _texts([final[i] for i in sites], tokenizer), strict=True))

    def text(site: int, token: int) -> str | None:
        if token == tokenizer.mask_id:
            return None
        return shown[site] if token == final[site] else _texts([token], tokenizer)[0]

    events: list[Event] = []
    for number, step in enumerate(steps, start=1):
        canvas, fresh = _tensor(step.canvas)[row], _tensor(step.newly_set)[row]
        changed = fresh | _tensor(step.remasked)[row]
        scores = None if step.commit_log_prob is None else _tensor(step.commit_log_prob)[row]
        for site in (i for i in changed.nonzero().flatten().tolist() if i in shown):
            score = math.nan if scores is None or not bool(fresh[site]) else float(scores[site])
            confidence = None if math.isnan(score) else round(math.exp(score), 4)
            events.append(Event(step=number, site=site, text=text(site, int(canvas[site])), confidence=confidence))
    first = _tensor(steps[0].canvas)[row].tolist()
    touched = (_tensor(steps[0].newly_set) | _tensor(steps[0].remasked))[row].tolist()
    initial = tuple(None if touched[i] else text(i, first[i]) for i in sites)
    order = {site: number for number, site in enumerate(sites)}
    return RowTrace(
        initial=initial,
        events=tuple(Event(step=e.step, site=order[e.site], text=e.text, confidence=e.confidence) for e in events),
    )


def _texts(tokens: list[int], tokenizer: Tokenizer) -> list[str]:
    return tokenizer.decode_tokens(tokens, special="⏹")


def _tensor(state: State) -> Tensor:
    if isinstance(state, dict):
        raise TypeError(f"record: met columns {sorted(state)}, wanted a text canvas (b, l)")
    return state
