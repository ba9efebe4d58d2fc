"""The learning curve of a text model, beside simple references."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.viz.files import write_whole

_INK, _SOFT, _MODEL = "#23211d", "#8a8478", "#1f7a8c"
_REFERENCES = ("#b08a2e", "#c65d2e", "#7a5ea8", "#5d7a3a")


def write_curve(
    path: str | Path,
    history: Sequence[tuple[int, float, float]],
    *,
    references: Mapping[str, float] | None = None,
    title: str = "Held-out bits per character",
    bound: bool = True,
) -> Path:
    """Draw held-out bits per character over training steps as a PNG, which appears whole or not at all.

    Args:
        path: where; the folder is made if need be.
        history: (step, bits per character, its standard error), in order of steps.
        references: bits per character of other models on the same text, drawn as lines, such as {"unigram": 4.7}.
        title: of the picture.
        bound: whether the model's figures are upper bounds (diffusion) or exact (autoregressive); named on the axis.

    Raises:
        ValueError: the history is empty.
        OSError: the place cannot be written.
    """
    if not history:
        raise ValueError("write_curve: the history is empty; wanted (step, bits per character, standard error) triples")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    _draw_history(axes, history, references or {})
    _draw_references(axes, references or {}, history)
    _dress(axes, title, bound)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return write_whole(path, picture.getvalue())


def _draw_history(axes: Any, history: Sequence[tuple[int, float, float]], references: Mapping[str, float]) -> None:
    steps, bits, errors = (list(column) for column in zip(*history, strict=True))
    low = [b - 2 * e for b, e in zip(bits, errors, strict=True)]
    high = [b + 2 * e for b, e in zip(bits, errors, strict=True)]
    axes.fill_between(steps, low, high, color=_MODEL, alpha=0.18, linewidth=0)
    axes.plot(steps, bits, color=_MODEL, linewidth=2, marker="o", markersize=4 if len(steps) < 40 else 0, zorder=3)
    label = f"{bits[-1]:.2f}" + (f" ± {errors[-1]:.2f}" if errors[-1] > 0 else "")
    above = _room_above(bits[-1], references)
    near = [i for i, step in enumerate(steps) if step >= 0.8 * steps[-1]]  # what the label stands over or under
    axes.annotate(
        label,
        (steps[-1], max(high[i] for i in near) if above else min(low[i] for i in near)),
        xytext=(0, 4 if above else -4),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        color=_MODEL,
        fontweight="bold",
        fontsize=10,
    )


def _room_above(value: float, references: Mapping[str, float]) -> bool:
    """Whether the next reference line is farther above than below."""
    up = min((bits - value for bits in references.values() if bits >= value), default=math.inf)
    down = min((value - bits for bits in references.values() if bits < value), default=math.inf)
    return up > down


def _draw_references(axes: Any, references: Mapping[str, float], history: Sequence[tuple[int, float, float]]) -> None:
    for number, (name, bits) in enumerate(references.items()):
        colour = _REFERENCES[number % len(_REFERENCES)]
        axes.axhline(bits, color=colour, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
        axes.annotate(
            f"{name}  {bits:.2f}",
            (0.995, bits),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=colour,
            fontsize=9,
        )
    values = [bits for _, bits, _ in history] + list(references.values())
    margin = 0.12 * (max(values) - min(values)) + 0.05
    axes.set_ylim(max(0.0, min(values) - 1.3 * margin), max(values) + margin)


def _dress(axes: Any, title: str, bound: bool) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=12, fontweight="bold", pad=20)
    axes.set_xlabel("training steps", color=_INK)
    axes.set_ylabel("bits per character" + (" (upper bound)" if bound else ""), color=_INK)
    axes.grid(axis="y", color="#e8e3d8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0)
    axes.margins(x=0.02)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#cfc8b9")
    axes.text(0.0, 1.015, "band: ± 2 standard errors", transform=axes.transAxes, color=_SOFT, fontsize=8, va="bottom")
