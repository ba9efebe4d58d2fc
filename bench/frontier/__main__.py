"""Samples with every sampler, step count and temperature from the packaged model, and writes docs/frontier.md.

Every point is kept in runs/frontier, so that a second call makes only what is missing; ``--page`` makes nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.frontier.methods import methods
from bench.frontier.page import write_page
from bench.frontier.run import Point, Scale, cached, slug

ROOT = Path(__file__).resolve().parents[2]
TEMPERATURES = (1.0, 0.8, 0.6)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.frontier", description=__doc__)
    parser.add_argument("--page", action="store_true", help="write the page from the points there are")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = ROOT / "runs" / "frontier"
    points = [cached(path, None) for path in sorted(folder.glob("*.json"))] if given.page else run_all(folder)
    write_page(points, ROOT / "docs")


def run_all(folder: Path) -> list[Point]:
    """All points, few steps first."""
    scale = Scale()
    told = {"temperature": 1.0, "steps": 0, "calls": 0.0}
    points = [cached(folder / "real.json", lambda: scale.measure(scale.real, method="held-out text", **told))]
    entries = methods()
    for temperature in TEMPERATURES:
        jobs = [(n, name) for name, e in entries.items() for n in (e.steps if temperature == 1 else e.few)]
        for n, name in sorted(jobs):
            path, make = folder / f"{slug((name, n, temperature))}.json", entries[name].make
            points.append(cached(path, lambda n=n, name=name, make=make, t=temperature: scale.run(name, make, n, t)))
            print(points[-1], flush=True)
    return points


if __name__ == "__main__":
    main()
