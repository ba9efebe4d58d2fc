"""The first run: two minutes of training on the bundled plays, then samples, an infilled line, a curve and a page.

``python -m unmask.recipes.quickstart`` (or ``make quickstart``) writes into runs/quickstart.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from unmask.cli.console import progress
from unmask.recipes.report import report, summary
from unmask.recipes.text import SHAKESPEARE, TextRecipe, train_text


def quickstart(out: str = "runs/quickstart", *, minutes: float = 2.0, seed: int = 0) -> str:
    """Train, measure, sample; returns what to show in the terminal.

    Args:
        out: the run's folder; a former quickstart there is replaced.
        minutes: of training.
        seed: of everything.
    """
    recipe = TextRecipe(
        data=SHAKESPEARE,
        out=out,
        tokenizer="bpe",
        vocab_size=2048,
        size="tiny",
        batch_size=8,
        learning_rate=4e-3,
        minutes=minutes,
        seed=seed,
    )
    run = train_text(recipe, overwrite=True)
    if run.result.interrupted:
        raise SystemExit(130)
    with progress("held-out text") as update:
        outcome = report(run, on_progress=update)
    return summary(run, outcome)


def main() -> None:
    """Command line of the quickstart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/quickstart")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"Training a masked diffusion model on the bundled plays for about {given.minutes:g} minutes.")
    print(quickstart(given.out, minutes=given.minutes, seed=given.seed))
    unmask = shutil.which("unmask") or str(Path(".venv/bin/unmask"))
    print(f"\nnext:\n  {unmask} generate --show                  # the model that ships with the package")
    print(f"  {unmask} generate --model {given.out}   # the one just trained")


if __name__ == "__main__":
    main()
