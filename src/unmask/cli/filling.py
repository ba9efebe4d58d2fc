"""What `generate` and `infill` do with a canvas: fill it, show it, print it, write it."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unmask.cli.console import print_json, progress
from unmask.data.canvas import Canvas
from unmask.loops import Step
from unmask.sampling import SamplingConfig
from unmask.text import TextModel
from unmask.viz.files import write_whole

_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Filling:
    """A canvas to fill, and where to."""

    model: TextModel
    model_name: str
    canvas: Canvas
    config: SamplingConfig
    may_end: bool
    show: bool
    html: str | None
    out: str | None
    json: bool


def run(filling: Filling, request: dict[str, Any]) -> None:
    """Fill the canvas and hand the texts out as they are ready.

    Args:
        filling: the work.
        request: what was asked for, repeated in the JSON report.
    """
    begun = time.perf_counter()
    finished: list[tuple[str, str]] = []
    calls = 0
    for texts, batch_calls in _batches(filling):
        calls += batch_calls
        for text, reason in texts:
            if not filling.json:
                _print_sample(len(finished), text, many=len(filling.canvas.tokens) > 1)
            finished.append((text, reason))
    if filling.out is not None:
        write_whole(filling.out, "\n\n".join(text for text, _ in finished).encode() + b"\n")
    if filling.json:
        settings = {k: v for k, v in dataclasses.asdict(filling.config).items() if k != "sampler"}
        settings["num_steps"] = filling.model.num_steps(filling.canvas, filling.config)
        print_json(
            {
                "model": filling.model_name,
                **request,
                "settings": settings,
                "samples": [{"text": text, "finish_reason": reason} for text, reason in finished],
                "network_calls": calls,
                "seconds": round(time.perf_counter() - begun, 3),
            }
        )


def _batches(filling: Filling) -> Iterator[tuple[list[tuple[str, str]], int]]:
    """(texts with their reasons, network calls) of each batch: the first sample alone, so that it comes early."""
    model, canvas = filling.model, filling.canvas
    total = len(canvas.tokens)
    together = filling.show or filling.html is not None
    edges = [0, total] if together else sorted({0, min(1, total), *range(1, total, _BATCH), total})
    for begin, end in itertools.pairwise(edges):
        part = canvas.rows(begin, end)
        steps = _watched(filling, part, begin)
        last: Step | None = None
        kept: list[Step] = []
        for last in steps:
            if filling.html is not None:
                kept.append(last)
        assert last is not None
        assert isinstance(last.canvas, Tensor)
        if filling.html is not None:
            _write_page(filling, part, kept)
        rows = model.real_rows(last.canvas, part)
        texts = [model.finish(row) if filling.may_end else (model.decode(row), "length") for row in rows]
        yield texts, last.network_calls


def _watched(filling: Filling, part: Canvas, begin: int) -> Iterator[Step]:
    """The steps of one batch, under a bar or shown live."""
    model, config = filling.model, filling.config
    steps = model.denoise(part, config, first_sample=begin, may_end=filling.may_end)
    total = model.num_steps(part, config)
    if filling.show:
        from rich.console import Console

        from unmask.viz.terminal import play

        console = Console(stderr=filling.json)
        yield from play(steps, model.tokenizer, num_steps=total, attention_mask=part.attention_mask, console=console)
        return
    with progress("denoising") as update:
        for step in steps:
            update(step.index + 1, total)
            yield step


def _write_page(filling: Filling, part: Canvas, steps: list[Step]) -> None:
    from unmask.viz.page import write_page
    from unmask.viz.trace import record

    assert filling.html is not None
    config = filling.config
    facts: dict[str, object] = {"model": filling.model_name, "steps": len(steps), "seed": config.seed}
    facts |= {"temperature": config.temperature}
    told = ("top_k", "top_p", "order", "threshold", "remask")
    facts |= {name: getattr(config, name) for name in told if getattr(config, name) is not None}
    trace = record(steps, filling.model.tokenizer, attention_mask=part.attention_mask)
    write_page(filling.html, trace, title="Denoising, step by step", facts=facts)


def _print_sample(number: int, text: str, *, many: bool) -> None:
    if many:
        print(f"{'' if number == 0 else chr(10)}--- sample {number + 1} ---")
    if sys.stdout.isatty():
        from unmask.viz.terminal import printable

        text = printable(text)
    print(text, flush=True)
