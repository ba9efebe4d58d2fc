"""Train a text model on a file, end to end: tokenizer, token cache, network, training, report."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState

from unmask.checkpoint import Checkpoint
from unmask.data.cache import TokenDataset, WindowDataset
from unmask.data.shakespeare import load_shakespeare_split
from unmask.data.text import load_documents, split_documents
from unmask.data.tokenizers import Tokenizer
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.errors import UserError
from unmask.loss import Loss
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.autoregressive import AutoregressiveNLL
from unmask.nn.transformer import Transformer, TransformerConfig
from unmask.processes.masked import Masked
from unmask.recipes.held_out import HeldOut, seconds_per_step
from unmask.text import TextModel
from unmask.training.config import TrainingConfig
from unmask.training.trainer import Trainer, TrainingResult
from unmask.viz.files import write_whole

Size = Literal["tiny", "small", "base"]
RUN_FILE = "run.json"
SHAKESPEARE = "shakespeare"
_LEARNING_RATES: dict[Size, float] = {"tiny": 2e-3, "small": 1e-3, "base": 4e-4}


@dataclass(frozen=True, kw_only=True)
class TextRecipe:
    """A training run on text. What is None is chosen from the size of the data, and written to the run's folder.

    Args:
        data: text or JSON-lines file, a folder of them, a Hugging Face data set, or "shakespeare" for the bundled
            plays and poems.
        out: the run's folder.
        text_field, limit: see `load_documents`.
        held_out: share of the characters that is kept apart, by document.
        tokenizer: "bpe", "bytes", "characters", or the path of a tokenizer.json.
        vocab_size: of a BPE tokenizer.
        size: of the network.
        context: tokens per training window, the longest text that the model can write at once.
        causal: train the autoregressive twin: the same network, read from left to right.
        steps: optimizer steps.
        minutes: about how long to train instead; the steps are counted from the speed of the first ones. 5 if neither
            is given.
        batch_size: windows per step.
        learning_rate: peak.
        mixed_precision: "bf16" for accelerators that are faster with it.
        compile: use torch.compile.
        seed: of everything.
    """

    data: str
    out: str
    text_field: str = "text"
    limit: int | None = None
    held_out: float = 0.05
    tokenizer: str | None = None
    vocab_size: int | None = None
    size: Size | None = None
    context: int = 128
    causal: bool = False
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    mixed_precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "minutes", "context", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"train: {name}={value}, wanted a number above 0")
        if self.steps is not None and self.minutes is not None:
            raise UserError("train: give either steps or minutes, not both")
        if not 0 < self.held_out < 1:
            raise UserError(f"train: held_out={self.held_out}, wanted a share of the text between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class TextRun:
    """A finished run.

    Args:
        recipe: with every choice made.
        result: of the trainer.
        model: the trained model; None in all processes but the main one.
        held_out: the held-out text.
        train_texts: the documents trained on.
        seconds: of training.
    """

    recipe: TextRecipe
    result: TrainingResult
    model: TextModel | None
    held_out: HeldOut
    train_texts: list[str]
    seconds: float


def train_text(recipe: TextRecipe, *, resume: bool = False, overwrite: bool = False, progress: bool = True) -> TextRun:
    """Run the recipe; under ``accelerate launch`` on many processes.

    Args:
        recipe: what to do.
        resume: go on with the run in ``recipe.out``.
        overwrite: replace the run in ``recipe.out``.
        progress: show bars.

    Raises:
        UserError: unusable data or options, or a folder that holds a run already.
    """
    folder = Path(recipe.out)
    refuse_used(folder, resume=resume, overwrite=overwrite)
    train_texts, held_out_texts = _documents(recipe)
    recipe = _sized(recipe, sum(map(len, train_texts)))
    tokenizer, train_tokens, held_out_tokens = _tokenize(recipe, train_texts, held_out_texts, resume=resume)
    checkpoint, loss = build(recipe, tokenizer)
    windows = train_tokens.windows(recipe.context)
    if recipe.steps is None:
        recipe = _timed(recipe, checkpoint, loss, windows)
    settings = json.dumps(dataclasses.asdict(recipe), indent=2).encode()
    if not resume and PartialState().is_main_process:
        write_whole(folder / RUN_FILE, settings)
    held_out = HeldOut(
        texts=held_out_texts,
        windows=held_out_tokens.windows(recipe.context, allow_short=True),
        loss=loss,
        seed=recipe.seed,
    )
    trainer = _trainer(recipe, checkpoint, windows, held_out, progress)
    begun = time.perf_counter()
    result = trainer.run(resume=resume, overwrite=overwrite)
    if resume and result.checkpoint is not None:  # not earlier: a resume that is refused must change nothing
        write_whole(folder / RUN_FILE, settings)
    model = None if result.checkpoint is None else TextModel(result.checkpoint)
    seconds = time.perf_counter() - begun
    return TextRun(
        recipe=recipe,
        result=result,
        model=model,
        held_out=held_out,
        train_texts=train_texts,
        seconds=seconds,
    )


def _trainer(
    recipe: TextRecipe, checkpoint: Checkpoint, windows: WindowDataset, held_out: HeldOut, progress: bool
) -> Trainer:
    return Trainer(
        checkpoint=checkpoint,
        loss=held_out.loss,
        data=windows,
        config=training_config(recipe),
        folder=recipe.out,
        evaluate=lambda denoiser: held_out.figures(denoiser, max_windows=64),
        sample=lambda denoiser: _glimpse(dataclasses.replace(checkpoint, denoiser=denoiser)),
        progress=progress,
    )


def _documents(recipe: TextRecipe) -> tuple[list[str], list[str]]:
    """(train, held out); the bundled plays have a split of their own."""
    if recipe.data == SHAKESPEARE:
        return load_shakespeare_split()
    documents = load_documents(recipe.data, text_field=recipe.text_field, limit=recipe.limit)
    return split_documents(documents, recipe.held_out, recipe.seed)


def build(recipe: TextRecipe, tokenizer: Tokenizer) -> tuple[Checkpoint, Loss]:
    """An untrained model of the recipe's shape, and the loss to train it with. The seed fixes the weights."""
    preset = {"tiny": TransformerConfig.tiny, "small": TransformerConfig.small, "base": TransformerConfig.base}
    vocab_size = tokenizer.vocab_size
    shape = preset[recipe.size or "tiny"](vocab_size=vocab_size, max_length=recipe.context, causal=recipe.causal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = Transformer(shape)
    process = Masked(vocab_size=vocab_size, mask_id=tokenizer.mask_id)
    card = {"data": recipe.data, "recipe": dataclasses.asdict(recipe)}
    if recipe.causal:
        twin = AutoregressiveDenoiser(net, vocab_size=vocab_size, bos_id=tokenizer.eos_id, forbidden=tokenizer.mask_id)
        return Checkpoint(process=process, denoiser=twin, tokenizer=tokenizer, card=card), AutoregressiveNLL()
    denoiser = MaskedDenoiser(net, vocab_size=vocab_size, mask_id=tokenizer.mask_id)
    loss = AnyOrderNLL(process=process)
    return Checkpoint(process=process, denoiser=denoiser, tokenizer=tokenizer, card=card), loss


def training_config(recipe: TextRecipe) -> TrainingConfig:
    """The trainer's numbers: ten evaluations and checkpoints per run, or more where steps are slow."""
    assert recipe.steps is not None
    assert recipe.learning_rate is not None
    every = max(1, recipe.steps // 10)
    return TrainingConfig(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=min(100, recipe.steps // 10),
        ema_decay=0.99 if recipe.steps < 2000 else 0.999,
        mixed_precision=recipe.mixed_precision,
        compile=recipe.compile,
        seed=recipe.seed,
        eval_every=every,
        sample_every=every,
        checkpoint_every=every,
        checkpoint_seconds=300.0,
        tensorboard=True,
    )


def stored_recipe(folder: str | Path) -> dict[str, Any]:
    """The settings of the run in `folder`, with every choice made; empty if there is none."""
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"resuming: {path} is not valid JSON ({error}); start anew with --overwrite") from error
    names = {field.name for field in dataclasses.fields(TextRecipe)}
    return {name: value for name, value in dict(stored).items() if name in names}


def refuse_used(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run, before anything is written there.

    Raises:
        UserError: it holds a run and neither option is given, or `resume` without a run, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"training in {folder}: it is a file; name a folder")
    used = any((folder / name).exists() for name in ("config.json", "training", RUN_FILE))
    if used and not (resume or overwrite):
        raise UserError(
            f"training in {folder}: it already holds a run; go on with --resume, replace it with --overwrite, "
            "or name another folder"
        )
    if resume and not used:
        raise UserError(f"training in {folder}: there is no run to resume; leave --resume out")


def _sized(recipe: TextRecipe, characters: int) -> TextRecipe:
    """Choices that follow from the amount of text: short texts get a small vocabulary, a long one a larger network."""
    tokenizer = recipe.tokenizer or ("characters" if characters < 200_000 else "bpe")
    vocab_size = recipe.vocab_size
    if tokenizer == "bpe" and vocab_size is None:
        limits = ((1_000_000, 1024), (20_000_000, 2048), (200_000_000, 8192))
        vocab_size = next((size for limit, size in limits if characters < limit), 32768)
    size: Size = recipe.size or ("small" if characters > 20_000_000 and torch.cuda.is_available() else "tiny")
    steps = None if recipe.steps is None else int(recipe.steps)
    minutes = 5.0 if steps is None and recipe.minutes is None else recipe.minutes
    return dataclasses.replace(
        recipe,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        size=size,
        minutes=minutes,
        learning_rate=recipe.learning_rate or _LEARNING_RATES[size],
    )


def _timed(recipe: TextRecipe, checkpoint: Checkpoint, loss: Loss, windows: WindowDataset) -> TextRecipe:
    """Turn the minutes into steps, by the speed of a few."""
    assert recipe.minutes is not None
    if PartialState().num_processes > 1:
        raise UserError("train: give --steps when several processes train, so that all agree on the number")
    seconds = seconds_per_step(checkpoint.denoiser, loss, windows, recipe.batch_size)
    return dataclasses.replace(recipe, steps=max(10, int(60 * recipe.minutes / seconds)), minutes=None)


def _tokenize(
    recipe: TextRecipe, train_texts: list[str], held_out_texts: list[str], *, resume: bool
) -> tuple[Tokenizer, TokenDataset, TokenDataset]:
    """Tokenizer and token caches in the run's folder; the main process writes them, the others wait."""
    folder = Path(recipe.out) / "tokens"
    with PartialState().main_process_first():
        if PartialState().is_main_process:
            stored = stored_recipe(recipe.out) if resume else {}
            same = all(stored.get(name) == getattr(recipe, name) for name in ("tokenizer", "vocab_size"))
            places = [path for path in (Path(recipe.out), folder) if (path / "tokenizer.json").is_file()]
            tokenizer = (
                Tokenizer.load(places[0]) if same and places else _tokenizer(recipe, train_texts, held_out_texts)
            )
            tokenizer.save(folder)
            train = TokenDataset.build(train_texts, tokenizer, folder / "train")
            return tokenizer, train, TokenDataset.build(held_out_texts, tokenizer, folder / "held_out")
        tokenizer = Tokenizer.load(folder)
        train = TokenDataset.open(folder / "train", tokenizer)
        return tokenizer, train, TokenDataset.open(folder / "held_out", tokenizer)


def _tokenizer(recipe: TextRecipe, texts: list[str], held_out: list[str]) -> Tokenizer:
    if recipe.tokenizer == "bytes":
        return Tokenizer.bytes()
    if recipe.tokenizer == "characters":
        return Tokenizer.characters([*texts, *held_out])  # the alphabet is no secret of the held-out text
    if recipe.tokenizer == "bpe":
        assert recipe.vocab_size is not None
        return Tokenizer.bpe(texts, vocab_size=recipe.vocab_size)
    assert recipe.tokenizer is not None
    return Tokenizer.from_file(recipe.tokenizer)


def _glimpse(checkpoint: Checkpoint) -> str:
    """The beginning of a sample, on one line."""
    model = TextModel(checkpoint)
    text = " ".join(model.generate(length=min(48, model.context), num_steps=24)[0].split())
    return f"sample: {text if len(text) <= 100 else text[:99] + '…'}"
