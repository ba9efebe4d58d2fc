"""The packaged models are what their cards say."""

from pathlib import Path

import pytest

from unmask import TextModel
from unmask.checkpoint import load_checkpoint
from unmask.data.cache import TokenDataset
from unmask.data.shakespeare import load_shakespeare_split
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.autoregressive import AutoregressiveNLL
from unmask.recipes.held_out import HeldOut
from unmask.recipes.shakespeare import MODELS


@pytest.mark.parametrize("name", ["shakespeare-masked", "shakespeare-causal"])
def test_the_cards_figure_is_reproduced(name: str, tmp_path: Path) -> None:
    """On 200 held-out windows the bits per character lie within 5 standard errors of the card's."""
    checkpoint = load_checkpoint(MODELS / name)
    _, texts = load_shakespeare_split()
    assert checkpoint.tokenizer is not None
    windows = TokenDataset.build(texts, checkpoint.tokenizer, tmp_path / "held_out").windows(128, allow_short=True)
    causal = isinstance(checkpoint.denoiser, AutoregressiveDenoiser)
    loss = AutoregressiveNLL() if causal else AnyOrderNLL(process=checkpoint.process)  # type: ignore[arg-type]
    held_out = HeldOut(texts=texts, windows=windows, loss=loss, seed=1)
    figures = held_out.figures(checkpoint.denoiser.eval(), max_windows=200)
    gap = figures["held_out_bits_per_character"] - checkpoint.card["figures"]["held_out_bits_per_character"]
    assert abs(gap) < 5 * figures["held_out_bits_per_character_se"]


def test_they_are_small_and_equal_in_size() -> None:
    sizes = [
        (MODELS / name / "model.safetensors").stat().st_size for name in ("shakespeare-masked", "shakespeare-causal")
    ]
    assert sizes[0] == sizes[1] < 12e6
    cards = [load_checkpoint(MODELS / name).card for name in ("shakespeare-masked", "shakespeare-causal")]
    assert cards[0]["tokens"] == cards[1]["tokens"]
    assert cards[0]["all_figures"] == cards[1]["all_figures"]
    assert cards[0]["licence"]


def test_the_default_model_writes_and_infills() -> None:
    model = TextModel.from_pretrained()
    (text,) = model.generate(seed=1, length=40, num_steps=20)
    assert len(text) > 20
    assert text == model.generate(seed=1, length=40, num_steps=20)[0]
    filled = model.infill("To be, or [[4]] to be", seed=0)
    assert filled.startswith("To be, or ")
    assert filled.endswith(" to be")
    assert model.tokenizer.decode(model.tokenizer.encode("░")) == "░"
