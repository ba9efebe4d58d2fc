"""`unmask score`: what texts cost a model, in bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from unmask.cli.console import load_model, model_name, parse, print_json, progress

if TYPE_CHECKING:
    from unmask.scoring import Score, Scores

EXAMPLES = (
    "unmask score my.txt",
    "unmask score my.txt --model runs/mine --num-draws 64",
    "unmask score corpus.jsonl --text-field body --limit 100 --json",
)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Bits per token and per character of each document and in total, with standard errors.

    Lower is better: the model finds the text less surprising. A diffusion model's figure is an upper bound of
    -log2 p(text), an autoregressive model's is exact. Documents longer than the model's context are cut into
    consecutive windows, each scored on its own.
    """

    file: tyro.conf.Positional[str]
    """Text or JSON-lines file, a folder of them, or a Hugging Face data set."""
    model: str | None = None
    """Checkpoint folder or Hugging Face hub id; the model that ships with unmask by default."""
    num_draws: int = 16
    """Network calls per window of a diffusion model, at least 3: four times as many halve the standard error."""
    text_field: str = "text"
    """Field that holds the text, for JSON lines and data sets."""
    limit: int | None = None
    """Score the first documents only."""
    seed: int = 0
    """Of the random draws."""
    json: bool = False
    """Print one JSON document on standard output instead of a table."""


def main(argv: Sequence[str]) -> None:
    """Parse, run, print."""
    options = parse(ScoreOptions, argv, command="score", examples=EXAMPLES)
    from unmask.data.text import load_documents

    texts = load_documents(options.file, text_field=options.text_field, limit=options.limit)
    model = load_model(options.model)
    with progress("scoring") as update:
        scores = model.score(texts, num_draws=options.num_draws, seed=options.seed, on_progress=update)
    if options.json:
        print_json(_report(options, scores))
    else:
        print("\n".join(_table(texts, scores)))


def _report(options: ScoreOptions, scores: Scores) -> dict[str, Any]:
    return {
        "model": model_name(options.model),
        "file": options.file,
        "seed": options.seed,
        "bound": scores.bound,
        "estimator": scores.estimator,
        "window": scores.window,
        "documents": [_fields(score) for score in scores.documents],
        "total": _fields(scores.total),
    }


def _fields(score: Score) -> dict[str, Any]:
    names = (
        "bits_per_token",
        "bits_per_token_se",
        "bits_per_character",
        "bits_per_character_se",
        "bits_per_character_spread",
    )
    return dataclasses.asdict(score) | {name: getattr(score, name) for name in names}


def _table(texts: Sequence[str], scores: Scores) -> list[str]:
    lines = [f"{'document':32} {'tokens':>9} {'characters':>11} {'bits/token':>17} {'bits/character':>17}"]
    for text, score in zip(texts, scores.documents, strict=True):
        start = " ".join(text[:120].split())
        lines.append(_row(start if len(start) <= 32 else start[:31] + "…", score))
    if len(scores.documents) > 1:
        lines.append(_row("total", scores.total))
    kind = "upper bounds" if scores.bound else "exact"
    lines.append("")
    spread = scores.total.bits_per_character_spread
    if spread is not None:
        lines.append(f"other text of the kind would move the total by about ± {spread:.4f} bits/character")
    lines.append(f"{kind} ± standard error of the draws; {scores.estimator}; windows of {scores.window} tokens")
    return lines


def _row(name: str, score: Score) -> str:
    token = f"{score.bits_per_token:.4f} ± {score.bits_per_token_se:.4f}"
    character = f"{score.bits_per_character:.4f} ± {score.bits_per_character_se:.4f}"
    return f"{name:32} {score.num_tokens:9d} {score.num_characters:11d} {token:>17} {character:>17}"
