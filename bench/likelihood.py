"""Standard error of likelihood estimators at equal network calls: ``python bench/likelihood.py [--model FOLDER]``.

Prints two markdown tables, on a Markov chain with its exact denoiser and on a trained model over held-out Shakespeare.
The standard error is measured: the root mean square, over examples, of the deviation between independent repetitions.
"""

from __future__ import annotations

import argparse
import math
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unmask import Rng
from unmask.checkpoint import load_checkpoint
from unmask.data.shakespeare import load_shakespeare_split
from unmask.denoiser import Denoiser
from unmask.metrics.estimators import (
    Estimator,
    LowDiscrepancyTime,
    Replicates,
    Target,
    UniformTime,
    per_row,
    shares,
    stratified,
)
from unmask.metrics.likelihood import log_likelihood
from unmask.metrics.mask_estimators import ContextGain, MaskedEstimator, StratifiedMasks, masked_cost
from unmask.oracles.markov_text import MarkovText
from unmask.process import Process
from unmask.processes.masked import Masked
from unmask.text import SHIPPED_MODEL

LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class ComplementaryPairs(MaskedEstimator):
    """`StratifiedMasks` whose calls come in pairs that split the sites (M and its complement); the full mask apart."""

    def estimate(self, target: Target, num_calls: int, rng: Rng) -> Replicates:
        length = target.lengths
        bare = target.cost(target.real, torch.ones(len(length), dtype=torch.float64)) / per_row(length, target.x)
        parts = []
        for r, pairs in enumerate(shares((num_calls - 1) // 2)):
            total = torch.zeros_like(bare)
            for u, stream in stratified(target, pairs, rng.fold(r)):
                count = torch.floor(u * (length - 1)).long() + 1
                where, cost = masked_cost(target, count, stream)
                other = length - count
                visible = 1.0 - other.double() / length
                rest = target.cost(target.real & ~where, target.masked.schedule.inverse(visible))
                total += (cost / per_row(count, cost) + rest / per_row(other, rest)) / 2
            parts.append(bare + total * per_row(length - 1, bare) / pairs)
        return Replicates(site_nats=torch.stack(parts), num_calls=num_calls)


METHODS: dict[str, Estimator] = {
    "uniform t": UniformTime(),
    "low-discrepancy t": LowDiscrepancyTime(),
    "stratified masks": StratifiedMasks(),
    "stratified masks, complementary pairs": ComplementaryPairs(),
    "context gain (default)": ContextGain(),
}


def table(title: str, denoiser: Denoiser, process: Process, x: Tensor, *, calls: int, repeats: int) -> str:
    """A markdown table of one world."""
    lines = [
        f"{title}: {len(x)} sequences of {x.shape[1]} tokens, {calls} calls each, {repeats} repetitions.\n",
        "| estimator | bits per token | s.e. of one sequence | as stated | calls for the s.e. of uniform t |",
        "|---|---|---|---|---|",
    ]
    scale, reference = math.log(2) * x.shape[1], math.nan
    for name, estimator in METHODS.items():
        found = log_likelihood(
            denoiser, process, x.repeat(repeats, 1), rng=Rng(0), estimator=estimator, num_calls=calls
        )
        values = -found.log_prob.reshape(repeats, len(x)) / scale
        measured = float(values.var(0).mean().sqrt())
        stated = float(found.standard_error.square().mean().sqrt()) / scale
        reference = measured if math.isnan(reference) else reference
        share = (measured / reference) ** 2
        lines.append(f"| {name} | {float(values.mean()):.3f} | {measured:.4f} | {stated:.4f} | {share:.3f} x |")
    return "\n".join(lines)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = Path(__file__).parents[1] / "src/unmask" / SHIPPED_MODEL
    parser.add_argument("--model", default=str(shipped), help="checkpoint folder of a masked text model")
    parser.add_argument("--calls", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=64)
    options = parser.parse_args()
    world = MarkovText.random(8, seed=0)
    process = Masked(vocab_size=9, mask_id=8)
    x = world.sample(8, LENGTH, Rng(1))
    sizes = {"calls": options.calls, "repeats": options.repeats}
    print(f"Machine: {platform.machine()}, torch {torch.__version__}.\n")
    print(table("Markov chain of 8 symbols, exact denoiser", world.denoiser(process), process, x, **sizes), "\n")
    checkpoint = load_checkpoint(options.model)
    assert checkpoint.tokenizer is not None
    ids = checkpoint.tokenizer.encode(load_shakespeare_split()[1][0][:20_000])[: 8 * LENGTH * 3]
    x = torch.tensor(ids).reshape(-1, LENGTH)[::3]
    name = "Trained transformer on held-out Shakespeare"
    print(table(name, checkpoint.denoiser.eval(), checkpoint.process, x, **sizes), flush=True)


if __name__ == "__main__":
    main()
