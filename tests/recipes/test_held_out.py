import math
from pathlib import Path

import pytest
import torch

from text_models import bits, constant_model
from unmask.data.cache import TokenDataset
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.autoregressive import AutoregressiveNLL
from unmask.recipes.held_out import HeldOut, seconds_per_step
from unmask.text import TextModel


def held_out(model: TextModel, texts: list[str], folder: Path, *, causal: bool = False) -> HeldOut:
    windows = TokenDataset.build(texts, model.tokenizer, folder / "tokens").windows(8, allow_short=True)
    loss = AutoregressiveNLL() if causal else AnyOrderNLL(process=model.checkpoint.process)  # type: ignore[arg-type]
    return HeldOut(texts=texts, windows=windows, loss=loss, seed=0)


def test_figures_are_bits_over_characters_with_the_end_marks_paid_for(tmp_path: Path) -> None:
    model = constant_model({"a": 0.25, "b": 0.5, "[EOS]": 0.125}, causal=True)
    texts = ["a" * 21, "b" * 40]
    figures = held_out(model, texts, tmp_path, causal=True).figures(model.denoiser)
    true = (21 * 2 + 40 * 1 + 2 * 3) / 61
    assert figures["held_out_bits_per_character"] == pytest.approx(true, rel=1e-5)


def test_the_standard_error_is_that_of_a_mean_over_windows(tmp_path: Path) -> None:
    model = constant_model({"a": 0.25, "b": 0.5}, causal=True)
    texts = ["aaaaaaaabbbbbbbb" * 8]
    figures = held_out(model, texts, tmp_path, causal=True).figures(model.denoiser, max_windows=16)
    windows = torch.tensor([16.0, 8.0] * 8)
    expected = float(windows.std()) / math.sqrt(16) / 8 * 129 / 128  # a token per character, and the end mark
    assert figures["held_out_bits_per_character_se"] == pytest.approx(expected, rel=1e-4)


def test_more_draws_come_closer_to_the_truth(tmp_path: Path) -> None:
    model = constant_model({"a": 0.5, "z": 0.01, "[EOS]": 0.3})
    part = held_out(model, ["aazaaaaaaaaaazaa" * 20], tmp_path)
    seen: list[tuple[int, int]] = []
    figures = part.figures(model.denoiser, draws=64, on_progress=lambda done, total: seen.append((done, total)))
    true = (280 * bits(0.5) + 40 * bits(0.01) + bits(0.3)) / 320
    assert figures["held_out_bits_per_character"] == pytest.approx(true, rel=0.03)
    assert seen[-1] == (41, 41)


def test_references_are_ngrams_of_the_training_text(tmp_path: Path) -> None:
    model = constant_model({"a": 0.5})
    part = held_out(model, ["abab" * 500], tmp_path)
    figures = part.references(["abab" * 1000])
    assert figures["unigram"][0] == pytest.approx(1.0, abs=0.01)
    assert figures["order-4 n-gram"][0] < 0.1


def test_timing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = constant_model({"a": 0.5})
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}
    part = held_out(model, ["abab" * 50], tmp_path)
    assert 0 < seconds_per_step(model.denoiser, part.loss, part.windows, 4, steps=1) < 60
    assert all(torch.equal(value, before[name]) for name, value in model.denoiser.state_dict().items())
    assert all(p.grad is None for p in model.denoiser.parameters())
    assert not model.denoiser.training
