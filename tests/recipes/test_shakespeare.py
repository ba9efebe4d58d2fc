import dataclasses
import json
from pathlib import Path

import pytest
import torch

from unmask.checkpoint import load_checkpoint
from unmask.data.shakespeare import load_shakespeare_split
from unmask.recipes import shakespeare
from unmask.recipes.shakespeare import ShakespeareRecipe


def small(*, causal: bool) -> ShakespeareRecipe:
    training = dataclasses.replace(
        ShakespeareRecipe().training, steps=3, warmup_steps=1, batch_size=4, eval_every=None, checkpoint_every=None
    )
    return ShakespeareRecipe(
        causal=causal, vocab_size=300, dim=16, num_layers=1, num_heads=2, context=64, training=training
    )


def test_twins_differ_in_direction_only() -> None:
    masked, causal = ShakespeareRecipe(), ShakespeareRecipe(causal=True)
    assert dataclasses.replace(causal, causal=False) == masked


def test_trains_and_exports_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tuple([texts[0][:60_000]] for texts in load_shakespeare_split())
    monkeypatch.setattr(shakespeare, "load_shakespeare_split", lambda: parts)
    monkeypatch.setattr(shakespeare, "MODELS", tmp_path / "models")
    shakespeare.train(small(causal=False), tmp_path / "masked")
    shakespeare.train(small(causal=True), tmp_path / "causal")
    figures = shakespeare.export(tmp_path / "masked", tmp_path / "causal")
    for name in ("shakespeare-masked", "shakespeare-causal"):
        checkpoint = load_checkpoint(tmp_path / "models" / name)
        assert checkpoint.card["figures"] == figures[name]
        assert checkpoint.card["tokens"] == 3 * 4 * 64
        assert checkpoint.card["all_figures"].keys() == figures.keys()
        assert all(w.dtype == torch.float32 for w in checkpoint.denoiser.parameters())
        json.dumps(checkpoint.card)
