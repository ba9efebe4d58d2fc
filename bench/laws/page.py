"""docs/samplers.md and its pictures."""

from __future__ import annotations

from pathlib import Path

from bench.laws.methods import Entry
from bench.laws.run import IMPERFECTION, NUM_SAMPLES, Point

GUIDE = Path(__file__).with_name("guide.md")
TEXT = """
## The law table

Four bits, three laws: *independent* ones, a *chain* whose neighbours agree nine times of ten, and *parity*, four fair
bits whose sum is even, so that nothing short of all four tells. Each sampler draws {samples} sequences, once with the
exact denoiser and once with an imperfect one (its logits flattened by {share:.0%} and moved by as much noise). A cell
gives the total variation to the data's law, the KL divergence KL(data || drawn) in nats, and in brackets the network
evaluations of a sample; a row that a step leaves alone is not evaluated. Draws from the very law would show a
total variation of {floor:.3f}. Written by

```sh
python -m bench.laws
```

*exact* samplers draw the model's law in the limit of many calls, *heuristic* ones do not.

Samplers of masks:

![Total variation by network evaluations, samplers of masks](images/laws-masks.png)

Samplers of uniform noise:

![Total variation by network evaluations, samplers of uniform noise](images/laws-uniform.png)
"""
Table = dict[tuple[str, bool], dict[str, list[Point]]]


def write_page(entries: list[Entry], table: Table, docs: Path, *, floor: float) -> None:
    """The guide, the tables and the pictures."""
    parts = [
        GUIDE.read_text(encoding="utf-8"),
        TEXT.format(samples=f"{NUM_SAMPLES:,}", share=IMPERFECTION, floor=floor),
    ]
    for (world, imperfect), lines in table.items():
        parts.append(section(world, imperfect, entries, lines))
    (docs / "samplers.md").write_text("\n".join(parts), encoding="utf-8")
    for family in ("masks", "uniform"):
        members = [entry for entry in entries if entry.family == family]
        picture(members, table, docs / "images" / f"laws-{family}.png", floor=floor)


def section(world: str, imperfect: bool, entries: list[Entry], lines: dict[str, list[Point]]) -> str:
    """One table: samplers by steps."""
    steps = sorted({point.steps for points in lines.values() for point in points})
    rows = [
        f"### {world.capitalize()}, {'imperfect' if imperfect else 'exact'} denoiser\n",
        f"| sampler, by steps | | {' | '.join(map(str, steps))} |",
        "|---" * (len(steps) + 2) + "|",
    ]
    for entry in entries:
        at = {point.steps: point for point in lines[entry.name]}
        cells = [f"{at[n].tv:.3f} / {at[n].kl:.3f} ({at[n].calls:.1f})" if n in at else "" for n in steps]
        rows.append(f"| {entry.name} | {'exact' if entry.exact else 'heuristic'} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def picture(entries: list[Entry], table: Table, path: Path, *, floor: float) -> None:
    """Total variation by evaluations, a panel for each world and model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    worlds = list(dict.fromkeys(world for world, _ in table))
    figure, axes = plt.subplots(2, len(worlds), figsize=(4.4 * len(worlds), 8.6), sharex=True, sharey=True)
    colours = plt.get_cmap("tab20")
    for (world, imperfect), lines in table.items():
        axis = axes[int(imperfect)][worlds.index(world)]
        for number, entry in enumerate(entries):
            points = lines[entry.name]
            axis.plot(
                [p.calls for p in points],
                [max(p.tv, floor / 3) for p in points],
                color=colours(number % 20),
                marker="o^s"[number // 20],
                markersize=3,
                linewidth=1,
                linestyle="-" if entry.exact else ":",
                label=entry.name,
            )
        axis.axhspan(floor / 3, floor, color="0.9", zorder=0)
        axis.set(xscale="log", yscale="log", title=f"{world}, {'imperfect' if imperfect else 'exact'}")
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("network evaluations a sample")
    for row in axes:
        row[0].set_ylabel("total variation to the data")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.03 + 0.016 * -(-len(entries) // 4), 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)
