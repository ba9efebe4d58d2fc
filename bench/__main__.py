"""Runs every comparison that can be made here, prints the table and writes docs/performance.md."""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import os
from pathlib import Path

import torch

from bench.measure import Row, machine

COMPARISONS = (
    "sampling_overhead",
    "calls",
    "training",
    "generate",
    "startup",
    "processes",
    "rules",
    "solvers",
    "filters",
)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
HEAD = ("target", "what", "measured", "wanted", "", "figures")

TEXT = """# Performance

Written by `make bench`; see `bench/README.md` for how to install the peers. Ratios are taken side by side in one
process, the pieces of work taking turns, best of several; absolute times drift with the machine and mean little.

Machine: {machine}.

Peers: {peers}. Date: {date}.

{table}

What the rows mean:

1. One step of ancestral sampling with fixed logits, so that the network costs nothing. Peers get the same table of
   logits; those marked heuristic in `bench/peers.py` do less than sampling the law, and are raced all the same.
2. A step that reveals no token makes no network call; T steps on L tokens then cost T (1 - (1 - 1/T)^L) on average.
3. Whole training steps of the same network: our loss, with logits at masked positions only and in bounded memory,
   against logits and float32 cross-entropy at all positions.
4. The same step against its own matrix products alone, run with the same shapes one after another.
5. `5b` is the whole generation with a real network, against peers whose samplers are exact. (Likelihood has a
   benchmark of its own, `python bench/likelihood.py`.)
6. Start-up.
7. Planned unmasking: a whole step over the network and the head at the masks that it looks at.
8. As 1, of other samplers, over the fastest exact peer: masked noise, where values are needed at few positions, and
   uniform noise, which has rates everywhere.
9. Top-p against sorting every position.
10. Corruption and the value of one loss, without gradients, of every process against the masked one around the same
    network. Masked noise needs the head at the masked half of the sites; noise that may put any token anywhere needs
    it at all of them, unless the bound is estimated from a share of the unchanged ones (`NELBO(kept_share=...)`).
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=COMPARISONS, help="run these alone and leave the page as it is")
    chosen = parser.parse_args().only
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that comparisons start
    rows: list[Row] = []
    for name in chosen or COMPARISONS:
        print(f"{name} ...", flush=True)
        rows += importlib.import_module(f"bench.{name}").rows()
    print(table(rows))
    if not chosen:
        write(PAGE, page(rows))


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in sorted(rows, key=lambda row: row.target_number))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(rows: list[Row]) -> str:
    """docs/performance.md."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return TEXT.format(machine=machine(), peers=peers(), date=today, table=table(rows))


def peers() -> str:
    found = []
    for package in ("flow-matching", "diffusers"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)


def write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


if __name__ == "__main__":
    main()
