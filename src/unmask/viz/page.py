"""A self-contained web page that plays a canvas being denoised."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from unmask.viz.files import write_whole
from unmask.viz.trace import RowTrace, Trace

_LEAD = (
    "Each block is a token that the model has not chosen yet, drawn as wide as the token that will stand there. "
    "A token's colour is its commit confidence: the probability that the model gave it at the moment it was set."
)
_FIELD = re.compile(r"%([A-Z]+)%")


def write_page(
    path: str | Path, trace: Trace, *, title: str = "Denoising", facts: Mapping[str, object] | None = None
) -> Path:
    """Write one HTML file that plays `trace`: play, pause and step by key or mouse, slider, speeds, light and dark.

    The file holds everything: it makes no outside request (its content security policy forbids them) and needs no
    server. Add ``#step=20`` to its address to open it paused at a step. The file appears whole or not at all.

    Args:
        path: where; the folder is made if need be.
        trace: from `unmask.viz.trace.record`.
        title: shown on top.
        facts: names and values shown under the title, such as the model, the seed and the number of steps.

    Raises:
        OSError: the place cannot be written.
    """
    return write_whole(path, render_page(trace, title=title, facts=facts or {}).encode())


def render_page(trace: Trace, *, title: str, facts: Mapping[str, object]) -> str:
    """The text of the page that `write_page` writes."""
    template = (resources.files("unmask") / "assets" / "denoising.html").read_text(encoding="utf-8")
    items = (f"<li><span>{_escape(name)}</span> <b>{_escape(value)}</b></li>" for name, value in facts.items())
    fields = {
        "TITLE": _escape(title),
        "LEAD": _escape(_LEAD),
        "FACTS": "".join(items),
        "NOSCRIPT": "".join(
            f'<article><div class="text">{_escape(_final_text(row))}</div></article>' for row in trace.rows
        ),
        "TRACE": _json(trace),
    }
    # one pass: what a field inserts is not searched for fields again
    return _FIELD.sub(lambda match: fields.get(match[1], match[0]), template)


def _final_text(row: RowTrace) -> str:
    texts = list(row.initial)
    for event in row.events:
        texts[event.site] = event.text
    return "".join("▯" if text is None else text for text in texts)


def _json(trace: Trace) -> str:
    """The trace as JSON that is safe inside a script element; each distinct text is spelled once."""
    index: dict[str, int] = {}

    def number(text: str | None) -> int:
        return -1 if text is None else index.setdefault(text, len(index))

    rows: list[dict[str, Any]] = []
    for row in trace.rows:
        events = [[event.step, event.site, number(event.text), event.confidence] for event in row.events]
        rows.append({"initial": [number(text) for text in row.initial], "events": events})
    data = {
        "strings": list(index),
        "rows": rows,
        "times": [round(time, 6) for time in trace.times],
        "network_calls": trace.network_calls,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _escape(value: object) -> str:
    return html.escape(str(value))
