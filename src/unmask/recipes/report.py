"""What a text run leaves behind for its reader: figures, samples, a curve and a page."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.data.infill import Gap, format_pattern
from unmask.recipes.text import TextRun
from unmask.text import TextModel
from unmask.training.log import read_metrics
from unmask.viz.curve import write_curve
from unmask.viz.files import write_whole
from unmask.viz.page import write_page
from unmask.viz.trace import record

_BITS = "held_out_bits_per_character"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of a run.

    Args:
        bits_per_character: held-out figure of the model, (value, standard error); an upper bound for diffusion.
        references: the same of n-gram models.
        samples: texts that the model wrote.
        infill: (pattern, filled text); None for an autoregressive model.
        files: what was written, by name.
    """

    bits_per_character: tuple[float, float]
    references: Mapping[str, tuple[float, float]]
    samples: list[str]
    infill: tuple[str, str] | None
    files: Mapping[str, str]


def report(
    run: TextRun, *, num_samples: int = 3, draws: int = 4, on_progress: Callable[[int, int], None] | None = None
) -> Report:
    """Measure the finished run on all of its held-out text, and write curve.png, samples.txt, denoising.html and
    result.json into its folder.

    Args:
        run: finished, in the main process.
        num_samples: texts to write.
        draws: of the bound, per held-out window.
        on_progress: called with (held-out windows done, windows in all).

    Raises:
        ValueError: called in another process than the main one.
    """
    model, folder = run.model, Path(run.recipe.out)
    if model is None:
        raise ValueError("report: this process holds no model; call it in the main process only")
    seed = run.recipe.seed
    draws = 1 if model.autoregressive else draws
    figures = run.held_out.figures(model.denoiser, draws=draws, on_progress=on_progress)
    bits = (figures[_BITS], figures[f"{_BITS}_se"])
    references = run.held_out.references(run.train_texts)
    steps = list(model.stream(num_samples=num_samples, seed=seed))
    final: Any = steps[-1].canvas
    samples = [model.finish(row)[0] for row in final.cpu()]
    infill = None if model.autoregressive else _infill(model, run.held_out.texts, seed)
    files = {
        "curve": write_curve(
            folder / "curve.png",
            _history(folder, run, bits),
            references={name: value for name, (value, _) in references.items()},
            bound=not model.autoregressive,
        ),
        "denoising": write_page(
            folder / "denoising.html",
            record(steps, model.tokenizer),
            title=f"Denoising: {folder.name}",
            facts={"steps": len(steps), "seed": seed, "held-out bits per character": f"{bits[0]:.3f} ± {bits[1]:.3f}"},
        ),
        "samples": write_whole(folder / "samples.txt", _samples_text(samples, infill).encode()),
    }
    written = {name: str(path) for name, path in files.items()} | {"result": str(folder / "result.json")}
    outcome = Report(bits_per_character=bits, references=references, samples=samples, infill=infill, files=written)
    write_whole(folder / "result.json", json.dumps(as_json(run, outcome), indent=2, ensure_ascii=False).encode())
    return outcome


def as_json(run: TextRun, outcome: Report) -> dict[str, Any]:
    """Every setting, seed, version and figure of the run."""
    from unmask import __version__

    return {
        "recipe": dataclasses.asdict(run.recipe),
        "steps": run.result.step,
        "interrupted": run.result.interrupted,
        "seconds": round(run.seconds, 1),
        "parameters": sum(p.numel() for p in run.model.denoiser.parameters()) if run.model else None,
        _BITS: {"value": outcome.bits_per_character[0], "standard_error": outcome.bits_per_character[1]},
        "references": {
            name: {"value": value, "standard_error": error} for name, (value, error) in outcome.references.items()
        },
        "samples": outcome.samples,
        "infill": None if outcome.infill is None else {"pattern": outcome.infill[0], "text": outcome.infill[1]},
        "files": dict(outcome.files),
        "versions": {
            "unmask": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }


def summary(run: TextRun, outcome: Report) -> str:
    """The report for the terminal."""
    kind = "exact" if run.recipe.causal else "upper bound"
    rows = {f"this model ({kind})": outcome.bits_per_character, **outcome.references}
    lines = ["held-out bits per character (± standard error), lower is better"]
    lines += [f"  {name:28} {value:.3f} ± {error:.3f}" for name, (value, error) in rows.items()]
    for number, text in enumerate(outcome.samples, start=1):
        lines += ["", f"--- sample {number} ---", text]
    if outcome.infill is not None:
        lines += ["", "--- infill ---", f"pattern: {outcome.infill[0]}", f"filled:  {outcome.infill[1]}"]
    lines += ["", "written:"] + [f"  {path}" for path in (run.recipe.out, *outcome.files.values())]
    return "\n".join(lines)


def _history(folder: Path, run: TextRun, final: tuple[float, float]) -> list[tuple[int, float, float]]:
    rows = [row for row in read_metrics(folder) if _BITS in row and row["step"] < run.result.step]
    history = [(int(row["step"]), float(row[_BITS]), float(row[f"{_BITS}_se"])) for row in rows]
    return [*history, (run.result.step, *final)]


def _infill(model: TextModel, texts: list[str], seed: int) -> tuple[str, str]:
    """A held-out sentence whose middle third is left to the model."""
    words = _sentence(max(texts, key=len)).split()
    while len(words) > 3 and len(model.tokenizer.encode(" ".join(words))) > model.context * 3 // 4:
        words = words[:-3]
    third = max(1, len(words) // 3)
    before, middle, after = (" ".join(words[i * third : (i + 1) * third]) for i in range(3))
    hidden = max(1, len(model.tokenizer.encode(middle)))
    pattern = format_pattern([f"{before} ", Gap(shortest=hidden, longest=hidden), f" {after}"])
    return pattern, model.infill(pattern, seed=seed)


def _sentence(text: str) -> str:
    """A sentence of ordinary length from about the middle of the text; its beginning where there is none."""
    middle = text[len(text) // 2 :][:20_000]
    found = re.search(r"(?<=[.!?]\s)[A-Z][^.!?:\[\]]{60,140}[.!?]", middle)
    return found.group() if found else " ".join(text.split()[:30]) or "it"


def _samples_text(samples: list[str], infill: tuple[str, str] | None) -> str:
    parts = [f"--- sample {number} ---\n{text}\n" for number, text in enumerate(samples, start=1)]
    if infill is not None:
        parts.append(f"--- infill ---\npattern: {infill[0]}\nfilled:  {infill[1]}\n")
    return "\n".join(parts)
