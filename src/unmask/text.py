"""`TextModel`: generate, infill and score text with a trained checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from unmask.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from unmask.data.canvas import Canvas, build_canvas
from unmask.data.infill import Gap, parse_pattern
from unmask.data.tokenizers import Tokenizer
from unmask.denoiser import Denoiser
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.errors import UserError
from unmask.inverse.constrained import Constrained
from unmask.languages.automaton import json_schema, regex
from unmask.languages.language import Language
from unmask.loops import Step, open_blocks, sample_blocks, start, time_grid, trajectory
from unmask.rng import Rng
from unmask.sampling import SamplingConfig, SamplingOptions, Without
from unmask.scoring import Scores, score_documents
from unmask.strategies import make_sampler

_GAPS = 1
SHIPPED_MODEL = "assets/models/shakespeare-masked"


class TextModel:
    """A checkpoint with a tokenizer, as a text model.

    Every random draw is keyed by (seed, sample index, step, position): the i-th sample is the same alone, in a batch
    and in batches of any size.

    Args:
        checkpoint: process, denoiser, tokenizer and model card.

    Raises:
        UserError: the checkpoint has no tokenizer.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if checkpoint.tokenizer is None:
            raise UserError("opening a text model: the checkpoint has no tokenizer, so it is not one of text")
        self.checkpoint = checkpoint
        self.denoiser: Denoiser = checkpoint.denoiser.eval()
        self.tokenizer: Tokenizer = checkpoint.tokenizer
        self._languages: dict[tuple[str | None, str | None, bool], Language] = {}

    @classmethod
    def from_pretrained(cls, source: str | Path | None = None) -> TextModel:
        """The model in a checkpoint folder or on the Hugging Face hub; None: the one that ships with the package.

        Raises:
            UserError: nothing usable is there.
        """
        if source is not None:
            return cls(load_checkpoint(source))
        shipped = Path(str(resources.files("unmask"))) / SHIPPED_MODEL
        if not shipped.is_dir():
            raise UserError(
                "loading the shipped model: this build of unmask carries none; name a checkpoint folder, "
                "for instance one that `unmask train` wrote"
            )
        return cls(load_checkpoint(shipped))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint folder, atomically. Raises OSError where the disk refuses."""
        save_checkpoint(folder, self.checkpoint)

    @property
    def context(self) -> int:
        """The longest canvas, in tokens, prompt included."""
        net: Any = self.denoiser.net
        length: int = net.config.max_length
        return length

    @property
    def autoregressive(self) -> bool:
        """Whether the model reads from left to right only."""
        return isinstance(self.denoiser, AutoregressiveDenoiser)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    # -- generating ----------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        num_samples: int = 1,
        length: int | None = None,
        batch_size: int = 32,
        **options: Unpack[SamplingOptions],
    ) -> list[str]:
        """Texts that begin with the prompt; each ends at its first end-of-text token, if it drew one.

        Args:
            prompt: a text that all samples begin with, or one per sample (of any lengths).
            num_samples: how many.
            length: new tokens per sample; None: up to the end of the context, at most 256.
            batch_size: rows per network call; changes speed and memory, never the texts.
            options: see `SamplingConfig`.

        Raises:
            UserError: the prompt and the new tokens do not fit the context, or an option is out of range.
        """
        config = SamplingConfig(**options)
        canvas = self.canvas(prompt, num_samples=num_samples, length=length)
        return [self.finish(row)[0] for row in self._fill(canvas, config, batch_size, may_end=True)]

    def infill(self, pattern: str, **options: Unpack[SamplingOptions]) -> str:
        """The pattern with its gaps filled: ``[[n]]`` takes n tokens, ``[[a-b]]`` from a to b (drawn by the seed).

        The given text stays as it is, and the model sees both sides of every gap. ``\\[[`` is a literal ``[[``. The
        end-of-text token is given probability zero.

        Raises:
            UserError: the pattern does not parse (the message gives the position) or is longer than the context, the
                model is autoregressive, or an option is out of range.
        """
        return self.infills(pattern, num_samples=1, **options)[0]

    def infills(
        self, pattern: str, *, num_samples: int, batch_size: int = 32, **options: Unpack[SamplingOptions]
    ) -> list[str]:
        """Like `infill`, for several independent fillings."""
        config = SamplingConfig(**options)
        canvas = self.infill_canvas(pattern, num_samples=num_samples, seed=config.seed)
        return [self.decode(row) for row in self._fill(canvas, config, batch_size, may_end=False)]

    def stream(
        self,
        prompt: str | Sequence[str] = "",
        *,
        num_samples: int = 1,
        length: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[Step]:
        """The steps of `generate`, one `Step` each, all samples in one batch. Same arguments, same draws."""
        config = SamplingConfig(**options)
        canvas = self.canvas(prompt, num_samples=num_samples, length=length)
        return self.denoise(canvas, config, may_end=True)

    def canvas(self, prompt: str | Sequence[str] = "", *, num_samples: int = 1, length: int | None = None) -> Canvas:
        """What `generate` starts from. Arguments and errors as there."""
        prompts = [prompt] * num_samples if isinstance(prompt, str) else list(prompt)
        if num_samples < 1 or not prompts:
            raise UserError(f"generate: num_samples={num_samples}, wanted at least 1")
        if not isinstance(prompt, str) and num_samples not in (1, len(prompts)):
            raise UserError(f"generate: {len(prompts)} prompts but num_samples={num_samples}; leave num_samples out")
        if length is not None and length < 1:
            raise UserError(f"generate: length={length}, wanted at least 1 new token")
        given = [self.tokenizer.encode(text) for text in prompts]
        rows: list[list[int | None]] = []
        for ids in given:
            free = self.context - len(ids)
            if free < (length or 1):
                raise UserError(
                    f"generate: prompt longer than the context: its {len(ids)} tokens and {length or 1} new ones "
                    f"exceed the {self.context} of this model; shorten the prompt or the length"
                )
            rows.append([*ids, *[None] * (length or min(free, 256))])
        one = isinstance(prompt, str)
        return self._canvas(rows, None if one else length or min(self.context, 256))

    def _canvas(self, rows: list[list[int | None]], longest_fill: int | None) -> Canvas:
        tokenizer = self.tokenizer
        return build_canvas(rows, mask_id=tokenizer.mask_id, pad_id=tokenizer.pad_id, longest_fill=longest_fill)

    def infill_canvas(self, pattern: str, *, num_samples: int = 1, seed: int = 0) -> Canvas:
        """What `infill` starts from; each sample draws its own gap lengths. Errors as there."""
        if self.autoregressive:
            raise UserError("infill: an autoregressive model sees the left side only; use a masked model")
        if num_samples < 1:
            raise UserError(f"infill: num_samples={num_samples}, wanted at least 1")
        parts = [part if isinstance(part, Gap) else self.tokenizer.encode(part) for part in parse_pattern(pattern)]
        longest = sum(part.longest if isinstance(part, Gap) else len(part) for part in parts)
        if longest > self.context:
            raise UserError(
                f"infill: pattern longer than the context: up to {longest} tokens, this model holds {self.context}; "
                "shorten the text or the gaps"
            )
        draws = Rng(seed).fold(_GAPS).uniform((num_samples, len(parts))).tolist()
        rows = [[token for part, u in zip(parts, row, strict=True) for token in _sites(part, u)] for row in draws]
        # a pattern without text, whose gaps may all be empty, still needs a site
        return self._canvas([row or [None] for row in rows], sum(p.longest for p in parts if isinstance(p, Gap)))

    def denoise(
        self, canvas: Canvas, config: SamplingConfig, *, first_sample: int = 0, may_end: bool = False
    ) -> Iterator[Step]:
        """Fill a canvas step by step.

        Args:
            canvas: the rows.
            config: how.
            first_sample: sample index of the first row; the others follow.
            may_end: whether the end-of-text token may be drawn.
        """
        tokenizer = self.tokenizer
        banned = {tokenizer.pad_id, tokenizer.eos_id} - ({tokenizer.eos_id} if may_end else set())
        denoiser: Denoiser = Without(self.denoiser, sorted(banned))
        canvas = canvas.to(self.device)
        rows = torch.arange(first_sample, first_sample + len(canvas.tokens), device=self.device)
        rng = Rng(config.seed).rows(rows)
        sampler = make_sampler(self.checkpoint.process, config)
        cond = {} if canvas.attention_mask is None else {"attention_mask": canvas.attention_mask}
        language = self._language(config, ends=may_end)
        if language is not None:
            denoiser = Constrained(denoiser, language=language, mask_id=tokenizer.mask_id)
            if may_end:  # after a prompt, the new tokens alone
                cond["constrained_sites"] = canvas.editable
        x: Any = start(sampler, canvas.tokens, rng, canvas.editable)
        num_steps, block_size = self._plan(canvas, config)
        if block_size is None:
            return trajectory(sampler, denoiser, x, time_grid(num_steps), rng=rng, editable=canvas.editable, **cond)
        return sample_blocks(
            sampler,
            denoiser,
            x,
            time_grid(num_steps),
            block_size=block_size,
            rng=rng,
            editable=canvas.editable,
            **cond,
        )

    def _language(self, config: SamplingConfig, *, ends: bool) -> Language | None:
        """What the text has to spell; with `ends`, end-of-text tokens may follow."""
        wanted, schema = config.regex, config.json_schema
        if wanted is None and schema is None:
            return None
        if self.autoregressive:
            raise UserError("sampling: an autoregressive model writes left to right and takes no regex or json_schema")
        key = (wanted, schema, ends)
        if key not in self._languages:
            spellings, pad_id = self.tokenizer.spellings(), self.tokenizer.eos_id if ends else None
            self._languages[key] = (
                json_schema(schema, spellings, pad_id=pad_id)
                if schema is not None
                else regex(str(wanted), spellings, pad_id=pad_id)
            )
        return self._languages[key]

    def num_steps(self, canvas: Canvas, config: SamplingConfig) -> int:
        """How many steps `denoise` will take."""
        per_block, block_size = self._plan(canvas, config)
        if block_size is None:
            return per_block
        return per_block * len(open_blocks(canvas.editable, canvas.attention_mask, block_size))

    def _plan(self, canvas: Canvas, config: SamplingConfig) -> tuple[int, int | None]:
        """(steps per block, block size): of the whole canvas when the block size is None."""
        if self.autoregressive:
            if config.planned or config.remask is not None:
                raise UserError("sampling: an autoregressive model writes left to right: no order, threshold or remask")
            return 1, 1
        most = canvas.longest_fill if config.threshold is not None else 64
        num_steps = config.num_steps or min(canvas.longest_fill, most)
        if config.block_size is None:
            return num_steps, None
        return math.ceil(num_steps * min(1.0, config.block_size / canvas.longest_fill)), config.block_size

    def _fill(self, canvas: Canvas, config: SamplingConfig, batch_size: int, *, may_end: bool) -> Iterator[Tensor]:
        """The filled rows without their padding, in order."""
        for begin in range(0, len(canvas.tokens), batch_size):
            part = canvas.rows(begin, begin + batch_size)
            tokens = part.tokens
            for step in self.denoise(part, config, first_sample=begin, may_end=may_end):
                assert isinstance(step.canvas, Tensor)
                tokens = step.canvas
            yield from self.real_rows(tokens, part)

    @staticmethod
    def real_rows(tokens: Tensor, canvas: Canvas) -> list[Tensor]:
        """The rows of `tokens` (b, l) without the padding of `canvas`."""
        if canvas.attention_mask is None:
            return list(tokens.cpu())
        real = canvas.attention_mask.cpu()
        return [row[mask] for row, mask in zip(tokens.cpu(), real, strict=True)]

    def decode(self, tokens: Tensor) -> str:
        """The text of one row; special tokens are left out."""
        return self.tokenizer.decode(tokens)

    def finish(self, tokens: Tensor) -> tuple[str, str]:
        """(text, reason): the text up to the first end-of-text token ("stop"), or the whole row ("length").

        An end-of-text token at the very beginning is the start mark of a document and ends nothing.
        """
        ids: list[int] = tokens.tolist()
        eos = self.tokenizer.eos_id
        ids = ids[1:] if ids[:1] == [eos] else ids
        end = ids.index(eos) if eos in ids else len(ids)
        return self.tokenizer.decode(ids[:end]), "stop" if end < len(ids) else "length"

    # -- scoring -------------------------------------------------------------------------------------------------------

    def score(
        self,
        texts: Sequence[str],
        *,
        num_draws: int = 16,
        seed: int = 0,
        batch_size: int = 32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Bits per token and per character of each text and in total, with standard errors.

        A text longer than the context is cut into consecutive windows of the context's length, each scored on its own:
        the first tokens of a window do not see the window before it. A diffusion model's figure is an upper bound of
        -log2 p(text), estimated with `num_draws` network calls per window (see `unmask.metrics.likelihood`); an
        autoregressive model's is exact, for the same windows.

        Args:
            texts: the documents, none of them empty.
            num_draws: at least 3: one call for all windows alike, two for a standard error.
            seed: of the draws.
            batch_size: windows per network call; never changes the figures.
            on_progress: called with (network calls done, network calls in all).

        Raises:
            UserError: no text, an empty text, or num_draws < 3.
        """
        return score_documents(
            self, texts, num_draws=num_draws, seed=seed, batch_size=batch_size, on_progress=on_progress
        )


def _sites(part: list[int] | Gap, uniform: float) -> Sequence[int | None]:
    return [None] * part.length(uniform) if isinstance(part, Gap) else part
