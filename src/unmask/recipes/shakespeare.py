"""Train the two models that ship with the package: a masked diffusion model and its autoregressive twin.

``python -m unmask.recipes.shakespeare masked runs/masked``, ``... causal runs/causal`` train them (about an hour
each on one core); ``... export runs/masked runs/causal`` measures both and writes the packaged checkpoints.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from unmask.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from unmask.data.cache import TokenDataset
from unmask.data.shakespeare import HELD_OUT_TITLES, load_shakespeare_split
from unmask.data.tokenizers import Tokenizer
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.loss import Loss
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.autoregressive import AutoregressiveNLL
from unmask.nn.transformer import Transformer, TransformerConfig
from unmask.processes.masked import Masked
from unmask.recipes.held_out import HeldOut
from unmask.training.config import TrainingConfig
from unmask.training.trainer import Trainer

MODELS = Path(__file__).parents[1] / "assets" / "models"


_TRAINING = TrainingConfig(
    steps=3000,
    batch_size=32,
    learning_rate=2.5e-3,
    warmup_steps=100,
    eval_every=250,
    sample_every=None,
    checkpoint_every=250,
)


@dataclass(frozen=True, kw_only=True)
class ShakespeareRecipe:
    """Both models share everything but the direction of attention and the loss.

    Args:
        causal: train the autoregressive twin.
        vocab_size: of the byte-level BPE trained on the training works.
        dim, num_layers, num_heads, context, short_conv: shape of the network; the context in tokens, the reach of the
            convolutions in neighbours.
        training: the trainer's numbers.
    """

    causal: bool = False
    vocab_size: int = 1024
    dim: int = 160
    num_layers: int = 5
    num_heads: int = 5
    context: int = 128
    short_conv: int = 3
    training: TrainingConfig = _TRAINING

    def build(self, tokenizer: Tokenizer) -> tuple[Checkpoint, Loss]:
        """The untrained model and its loss."""
        config = TransformerConfig(
            vocab_size=tokenizer.vocab_size,
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            max_length=self.context,
            short_conv=self.short_conv,
            causal=self.causal,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            net = Transformer(config)
        v, mask_id = tokenizer.vocab_size, tokenizer.mask_id
        process = Masked(vocab_size=v, mask_id=mask_id)
        denoiser: MaskedDenoiser | AutoregressiveDenoiser
        loss: Loss
        if self.causal:
            denoiser = AutoregressiveDenoiser(net, vocab_size=v, bos_id=tokenizer.eos_id, forbidden=mask_id)
            loss = AutoregressiveNLL()
        else:
            denoiser, loss = MaskedDenoiser(net, vocab_size=v, mask_id=mask_id), AnyOrderNLL(process=process)
        card = {"recipe": dataclasses.asdict(self)}
        return Checkpoint(process=process, denoiser=denoiser, tokenizer=tokenizer, card=card), loss


def train(recipe: ShakespeareRecipe, folder: Path) -> None:
    """Train one of the models in `folder`, going on where a killed run stopped."""
    train_texts, held_out_texts = load_shakespeare_split()
    tokenizer = Tokenizer.bpe(train_texts, vocab_size=recipe.vocab_size)
    checkpoint, loss = recipe.build(tokenizer)
    data = TokenDataset.build(train_texts, tokenizer, folder / "tokens" / "train")
    held_out = held_out_windows(held_out_texts, tokenizer, folder, recipe.context, loss)
    trainer = Trainer(
        checkpoint=checkpoint,
        loss=loss,
        data=data.windows(recipe.context),
        config=recipe.training,
        folder=folder,
        evaluate=lambda denoiser: held_out.figures(denoiser, max_windows=128),
    )
    resume = (folder / "training").is_dir()
    trainer.run(resume=resume)


def held_out_windows(texts: list[str], tokenizer: Tokenizer, folder: Path, context: int, loss: Loss) -> HeldOut:
    """The held-out works, packed for measuring."""
    data = TokenDataset.build(texts, tokenizer, folder / "tokens" / "held_out")
    return HeldOut(texts=texts, windows=data.windows(context, allow_short=True), loss=loss, seed=0)


def export(masked: Path, causal: Path) -> dict[str, Any]:
    """Measure both runs on all held-out windows and write them, in half precision and with cards, into the package."""
    _, held_out_texts = load_shakespeare_split()
    figures: dict[str, dict[str, float]] = {}
    parts: dict[str, Checkpoint] = {}
    for name, folder in (("shakespeare-masked", masked), ("shakespeare-causal", causal)):
        checkpoint = load_checkpoint(folder)
        is_causal = isinstance(checkpoint.denoiser, AutoregressiveDenoiser)
        loss = AutoregressiveNLL() if is_causal else AnyOrderNLL(process=checkpoint.process)  # type: ignore[arg-type]
        held_out = held_out_windows(held_out_texts, _tokenizer(checkpoint), folder, _context(checkpoint), loss)
        figures[name] = held_out.figures(checkpoint.denoiser.eval(), draws=1 if is_causal else 8)
        parts[name] = checkpoint
    for name, checkpoint in parts.items():
        card = _card(name, checkpoint, figures)
        save_checkpoint(MODELS / name, dataclasses.replace(checkpoint, card=card), dtype=torch.float16)
    return figures


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    assert checkpoint.tokenizer is not None
    return checkpoint.tokenizer


def _context(checkpoint: Checkpoint) -> int:
    return int(checkpoint.card["recipe"]["context"])


def _card(name: str, checkpoint: Checkpoint, figures: dict[str, dict[str, float]]) -> dict[str, Any]:
    recipe = checkpoint.card["recipe"]
    training = recipe["training"]
    return {
        "name": name,
        "data": "39 of the 42 complete works of Shakespeare that ship with the package (public domain)",
        "held_out_works": list(HELD_OUT_TITLES),
        "licence": "Apache-2.0 (weights); the text is in the public domain",
        "steps": training["steps"],
        "tokens": training["steps"] * training["batch_size"] * recipe["context"],
        "seed": training["seed"],
        "figures": figures[name],
        "all_figures": figures,
        "made_by": "python -m unmask.recipes.shakespeare",
        "recipe": recipe,
    }


def main() -> None:
    """Command line of this recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("masked", "causal", "export"))
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, help="other than the recipe's, to try it out")
    given = parser.parse_args()
    what: Literal["masked", "causal", "export"] = given.what
    if what == "export":
        print(json.dumps(export(*given.folders), indent=2))
        return
    recipe = ShakespeareRecipe(causal=what == "causal")
    if given.steps:
        shorter = dataclasses.replace(recipe.training, steps=given.steps, warmup_steps=min(100, given.steps // 10))
        recipe = dataclasses.replace(recipe, training=shorter)
    train(recipe, given.folders[0])


if __name__ == "__main__":
    main()
