"""The left-to-right factorisation, as a baseline with the same network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unmask.denoiser import Denoiser
from unmask.law import Categorical, State


class AutoregressiveDenoiser(Denoiser):
    """p(x) = prod_i p(x_i | x_<i): asked about a clean sequence x, site i's law conditions on x_<i only.

    The shift by one lives here: the causal network reads (bos, x_1, ..., x_{l-1}). Its log-probability of x is the
    model's exact log-likelihood, which makes it the baseline that a diffusion bound is compared with.

    Args:
        net: a *causal* network with a hidden/head split, as for `MaskedDenoiser`.
        vocab_size: number of states.
        bos_id: the token that starts every sequence.
        forbidden: a token that is never data (the mask, when the tokenizer has one), given probability zero.

    References:
        Radford et al., "Language models are unsupervised multitask learners", OpenAI technical report 2019.
    """

    def __init__(self, net: nn.Module, *, vocab_size: int, bos_id: int, forbidden: int | None = None) -> None:
        super().__init__()
        self.net, self.vocab_size, self.bos_id, self.forbidden = net, vocab_size, bos_id, forbidden

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
        if isinstance(xt, dict):
            raise TypeError(f"AutoregressiveDenoiser: met columns {sorted(xt)}, wanted one tensor of tokens (b, l)")
        shifted = xt.roll(1, dims=1).index_fill(1, xt.new_zeros(1), self.bos_id)
        documents = cond.get("document_ids")
        if documents is not None:  # a document's first token must not see the last one of its predecessor
            starts = documents != documents.roll(1, dims=1)
            shifted = shifted.masked_fill(starts, self.bos_id)
        if attention_mask is not None:  # with padding on the left, the first real token follows bos as well
            shifted = shifted.masked_fill(attention_mask & ~attention_mask.roll(1, dims=1), self.bos_id)
        hidden = self.net(shifted, t, attention_mask=attention_mask, **cond)
        head: Any = self.net.head
        return Categorical.from_hidden(hidden, head, vocab_size=self.vocab_size, forbidden=self.forbidden)

    def config(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "bos_id": self.bos_id, "forbidden": self.forbidden}
