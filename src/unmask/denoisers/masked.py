"""The carry-over parametrisation for masked diffusion."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unmask.denoiser import Denoiser
from unmask.law import Categorical, State


class MaskedDenoiser(Denoiser):
    """The law of x_0 given a partly masked x_t, from a network with a hidden/head split.

    Two exact facts are built in: an unmasked token is its own clean value (carry-over), and the mask is never data
    (zero mask probability). Logits are made for the masked positions that somebody asks about, and for no others.

    Args:
        net: maps (tokens (b, l), t (b,), attention_mask=..., **cond) to hidden states (b, l, d); `net.head` maps
            hidden states
            (n, d) to logits (n, v), and may offer `token_log_prob(hidden, targets, forbidden=...)` in bounded memory.
        vocab_size: v, the number of states with the mask.
        mask_id: the mask's state.

    References:
        Sahoo et al., "Simple and effective masked diffusion language models", 2024, arXiv:2406.07524 (the SUBS
        parametrisation); Shi et al., 2024, arXiv:2406.04329.
    """

    def __init__(self, net: nn.Module, *, vocab_size: int, mask_id: int) -> None:
        super().__init__()
        if not 0 <= mask_id < vocab_size:
            raise ValueError(f"MaskedDenoiser: mask_id={mask_id} is not one of the {vocab_size} states")
        self.net, self.vocab_size, self.mask_id = net, vocab_size, mask_id

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
        if isinstance(xt, dict):
            raise TypeError(f"MaskedDenoiser: met columns {sorted(xt)}, wanted one tensor of tokens (b, l)")
        hidden = self.net(xt, t, attention_mask=attention_mask, **cond)
        head: Any = self.net.head
        law = Categorical.from_hidden(hidden, head, vocab_size=self.vocab_size, forbidden=self.mask_id)
        return law.with_known(xt, xt != self.mask_id)

    def config(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "mask_id": self.mask_id}
