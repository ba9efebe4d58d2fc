"""docs/frontier.md and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.frontier.run import NUM_SAMPLES, Point

TEXT = """# Quality against calls

Text from the packaged model with every sampler, {samples} samples of 128 tokens for each point. Written by

```sh
python -m bench.frontier
```

*Calls*: network evaluations of a sample, on average (a step that reveals nothing in a row does not evaluate it).
*Perplexity*: of the samples under the packaged autoregressive twin, +- its standard error; lower is better only at an
equal *entropy* (of the tokens within a sample, nats) and share of *distinct* bigrams, since repeating oneself is cheap:
that is why most samplers are run at three temperatures of the model. *MAUVE*: against held-out text, from the twin's
hidden states averaged over windows of 32 tokens; other real text gets 0.89, since there are 256 windows only.

Held-out text itself: perplexity {real.perplexity:.1f} +- {real.error:.1f}, entropy {real.entropy:.2f}, distinct
{real.distinct:.3f}.

![Perplexity, MAUVE and entropy by calls](images/frontier.png)

What it shows of this small model, which is far from the data whatever the sampler:

- Orders that look at no law (ancestral, first-hitting, planned at random) and the trapezoidal rule have nearly all that
  they can get at 32 to 64 calls, and are alike at equal calls: a step of second order costs two calls and is worth two.
- Orders by confidence (top probability, margin, entropy) are worse than random by a factor of two to five at 8 to 32
  calls, at every temperature: what they are sure of stands close together. Left to right, where all of it does, is far
  worse. With a call for every token these are the best (273 to 286; random 321), and thresholds and a small bound on
  the entropy find this by themselves.
- Confidence helps at few calls if it is that of the drawn values and the order is noisy: MaskGIT is like a lower
  temperature, and at equal entropy somewhat better than the rest (16 calls: 139 at 4.11; random orders, between the
  temperatures, about 170).
- Re-masking goes on where ancestral steps stop, at the temperatures below 1: from 64 to 256 steps of 128 tokens
  ancestral steps go from 146 to 147 (0.8) and from 53 to 54 (0.6), re-masking by a cap from 139 to 137 and from 54 to
  48, with a loop from 144 to 136 and from 52 to 44, at no less entropy. Only the last is beyond the error bars of a
  point (three standard errors); at temperature 1 there is no difference.
- Routing by top k repeats itself: see its distinct bigrams, entropy and MAUVE.
- MAUVE is too noisy with so few windows to tell near points apart; it does tell collapsed text.
"""
HEAD = ("sampler", "steps", "calls", "perplexity", "entropy", "distinct", "MAUVE")


def write_page(points: list[Point], docs: Path) -> None:
    """The tables, one for each temperature, and the picture."""
    (real,) = (p for p in points if p.method == "held-out text")
    points = [p for p in points if p is not real]
    parts = [TEXT.format(samples=NUM_SAMPLES, real=real)]
    for temperature in sorted({p.temperature for p in points}, reverse=True):
        rows = [HEAD, ("---",) * len(HEAD)]
        for p in sorted((p for p in points if p.temperature == temperature), key=lambda p: (p.method, p.calls)):
            rows.append(
                (
                    p.method,
                    str(p.steps),
                    f"{p.calls:.1f}",
                    f"{p.perplexity:.1f} +- {p.error:.1f}",
                    f"{p.entropy:.2f}",
                    f"{p.distinct:.3f}",
                    f"{p.mauve:.3f}",
                )
            )
        lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"## Temperature {temperature}\n\n{lines}\n")
    (docs / "frontier.md").write_text("\n".join(parts), encoding="utf-8")
    picture(points, real, docs / "images" / "frontier.png")


def picture(points: list[Point], real: Point, path: Path) -> None:
    """Three figures by calls at the temperature 1, and three by entropy, where a line goes through the temperatures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(14, 8.4))
    names = list(dict.fromkeys(family(p.method) for p in points))
    warm = [p for p in points if p.temperature == 1]
    for axis, key in zip(axes[0], ("perplexity", "mauve", "entropy"), strict=True):
        draw(axis, names, warm, "calls", key)
        axis.set(xscale="log", xlabel="network evaluations a sample", ylabel=key, title="temperature 1")
        if key != "mauve":
            axis.axhline(getattr(real, key), color="0.5", linewidth=1, linestyle="--")
    about = {n: [p for p in points if 0.75 * n <= p.calls <= 1.25 * n] for n in (16, 64)}
    for axis, n, key in zip(axes[1], (16, 64, 64), ("perplexity", "perplexity", "mauve"), strict=True):
        draw(axis, names, about[n], "entropy", key)
        axis.set(xlabel="entropy", ylabel=key, title=f"about {n} evaluations, all temperatures")
        axis.axvline(real.entropy, color="0.5", linewidth=1, linestyle="--")
    for axis in axes.flat:
        if axis.get_ylabel() == "perplexity":
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=6, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(axis: Any, names: list[str], points: list[Point], across: str, key: str) -> None:
    """One line for each method."""
    from matplotlib import pyplot as plt

    colours = plt.get_cmap("tab20")
    for number, name in enumerate(names):
        line = sorted((p for p in points if family(p.method) == name), key=lambda p: float(getattr(p, across)))
        axis.plot(
            [getattr(p, across) for p in line],
            [getattr(p, key) for p in line],
            marker="os^v"[number % 4],
            markersize=4,
            linewidth=1,
            color=colours(number % 20),
            label=name,
        )


def family(method: str) -> str:
    """The method without its number."""
    return method.rstrip("0123456789. ")
