"""`unmask info`: what a checkpoint is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from unmask.cli.console import load_model, model_name, parse, print_json

EXAMPLES = ("unmask info", "unmask info runs/mine", "unmask info runs/mine --json")


@dataclass(frozen=True, kw_only=True)
class Info:
    """What a checkpoint is: process, schedule, network, tokenizer and model card."""

    model: Annotated[str | None, tyro.conf.arg(name="model", metavar="MODEL"), tyro.conf.Positional] = None
    """Checkpoint folder or Hugging Face hub id; the model that ships with unmask by default."""
    json: bool = False
    """Print one JSON document on standard output instead of text."""


def main(argv: Sequence[str]) -> None:
    """Parse, load, print."""
    options = parse(Info, argv, command="info", examples=EXAMPLES)
    report = describe(options.model)
    if options.json:
        print_json(report)
    else:
        print("\n".join(_lines(report)))


def describe(source: str | None) -> dict[str, Any]:
    """What the checkpoint is, as JSON values."""
    model = load_model(source)
    process = model.checkpoint.process
    net: Any = model.denoiser.net
    return {
        "model": model_name(source),
        "kind": "autoregressive" if model.autoregressive else "diffusion",
        "process": {"class": type(process).__name__} | _plain(process),
        "denoiser": type(model.denoiser).__name__,
        "network": {
            "class": type(net).__name__,
            "parameters": sum(p.numel() for p in model.denoiser.parameters()),
            **_plain(net.config),
        },
        "tokenizer": {
            "vocab_size": model.tokenizer.vocab_size,
            "mask_id": model.tokenizer.mask_id,
            "eos_id": model.tokenizer.eos_id,
            "pad_id": model.tokenizer.pad_id,
            "fingerprint": model.tokenizer.fingerprint(),
        },
        "card": dict(model.checkpoint.card),
    }


def _plain(part: Any) -> dict[str, Any]:
    """The fields of a dataclass; those that are dataclasses themselves by their representation."""
    values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {name: repr(v) if dataclasses.is_dataclass(v) else v for name, v in values.items()}


def _lines(report: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in report.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}"
            yield from _lines(value, indent + "  ") if value else [f"{indent}  (none)"]
        elif value is not None:
            shown = f"{value:,}" if name == "parameters" else f"{value:.4f}" if isinstance(value, float) else value
            yield f"{indent}{name:{30 - len(indent)}} {shown}"
