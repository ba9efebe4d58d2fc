"""Tiny text models that the tests of the text model, the command line and the viewers share."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from unmask.checkpoint import Checkpoint
from unmask.data.tokenizers import Tokenizer
from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.nn.transformer import Transformer, TransformerConfig
from unmask.processes.masked import Masked
from unmask.text import TextModel

ALPHABET = "abcdefghijklmnopqrstuvwxyz .,'\n"


def tiny_model(*, context: int = 32, causal: bool = False, seed: int = 0) -> TextModel:
    """An untrained transformer over a small alphabet, with weights large enough to have opinions."""
    tokenizer = Tokenizer.characters([ALPHABET])
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=2, num_heads=2, max_length=context, causal=causal
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Transformer(config)
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(torch.randn_like(weight) * 0.3)
    return _model(net, tokenizer, causal=causal)


def constant_model(favourites: dict[str, float], *, context: int = 16, causal: bool = False) -> TextModel:
    """A model whose law is the same at every site: each favourite has its probability, the others share the rest.

    "[EOS]" and "[PAD]" name the special tokens.
    """
    tokenizer = Tokenizer.characters([ALPHABET])
    special = {"[EOS]": tokenizer.eos_id, "[PAD]": tokenizer.pad_id}
    ids = {special[name] if name in special else tokenizer.encode(name)[0]: p for name, p in favourites.items()}
    others = tokenizer.vocab_size - 1 - len(ids)  # the mask has no share
    probs = torch.full((tokenizer.vocab_size,), (1 - sum(ids.values())) / others)
    for token, p in ids.items():
        probs[token] = p
    return _model(ConstantNet(probs.log(), context), tokenizer, causal=causal)


class ConstantNet(nn.Module):
    """The same logits at every site."""

    def __init__(self, logits: Tensor, context: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.config = SimpleNamespace(max_length=context)

    def forward(self, tokens: Tensor, t: Any = None, *, attention_mask: Any = None, **cond: Any) -> Tensor:
        return torch.zeros(*tokens.shape, 1)

    def head(self, hidden: Tensor) -> Tensor:
        return self.logits.expand(len(hidden), -1)


def bits(p: float) -> float:
    """-log2 p."""
    return -math.log2(p)


def _model(net: nn.Module, tokenizer: Tokenizer, *, causal: bool) -> TextModel:
    size, mask = tokenizer.vocab_size, tokenizer.mask_id
    process = Masked(vocab_size=size, mask_id=mask)
    denoiser = (
        AutoregressiveDenoiser(net, vocab_size=size, bos_id=tokenizer.eos_id, forbidden=mask)
        if causal
        else MaskedDenoiser(net, vocab_size=size, mask_id=mask)
    )
    return TextModel(Checkpoint(process=process, denoiser=denoiser, tokenizer=tokenizer, card={"data": "none"}))
