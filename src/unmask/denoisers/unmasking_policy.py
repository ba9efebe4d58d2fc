"""A denoiser that also says which masks it would reveal first."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unmask.denoiser import Denoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.law import Annotated, Categorical, LogProbMap, SiteLaw, State
from unmask.nn.transformer import Block, Norm, TransformerConfig, build_mask, default_positions, rotary


class PolicyLaw(Annotated):
    """A law of sites with a score for each.

    Args:
        law: the law.
        scores: (b, *s), higher is revealed sooner; those of revealed sites mean nothing.
    """

    def __init__(self, law: SiteLaw, scores: Float[Tensor, "b *s"]) -> None:
        super().__init__(law)
        self.scores = scores

    def map(self, fn: LogProbMap) -> PolicyLaw:
        return PolicyLaw(self.law.map(fn), self.scores)


class UnmaskingPolicy(Denoiser):
    """The denoiser's own law, and scores of its sites from one more layer over its hidden states:

        h = net(x_t, t),   s_i = w . norm(Block(h + m [x_t^i is masked]))_i.

    `plackett_luce` reveals sites by these scores; w = 0 before training, when every order is equally likely. Scores and
    tokens are trained together by `PolicyGradient`: the gradient of the scores reaches the network, too.

    Args:
        inner: the denoiser.
        dim: d, size of a hidden state.
        num_heads: of the layer's attention.

    Raises:
        TypeError: `inner` is another denoiser.

    References:
        Huang et al., "Reinforcing the diffusion chain of lateral thought with diffusion language models", 2025,
        arXiv:2505.10446 (the unmasking policy module; its layer is modulated by time and confidence as well, which here
        the hidden states carry).
    """

    def __init__(self, inner: MaskedDenoiser, *, dim: int, num_heads: int) -> None:
        super().__init__()
        if not isinstance(inner, MaskedDenoiser):
            raise TypeError(f"UnmaskingPolicy: met {type(inner).__name__}, wanted a MaskedDenoiser")
        config = TransformerConfig(
            vocab_size=inner.vocab_size, dim=dim, num_layers=1, num_heads=num_heads, max_length=1
        )
        self.inner, self.dim, self.num_heads = inner, dim, num_heads
        self.is_mask = nn.Parameter(torch.zeros(dim))
        self.block, self.norm, self.score = Block(config), Norm(config), nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> PolicyLaw:
        """As for any denoiser; `positions` and `document_ids` mean to the layer what they mean to the network."""
        if isinstance(xt, dict):
            raise TypeError(f"UnmaskingPolicy: met columns {sorted(xt)}, wanted one tensor of tokens (b, l)")
        masked, net = xt == self.inner.mask_id, self.inner.net
        hidden = net(xt, t, attention_mask=attention_mask, **cond)
        positions = cond.get("positions")
        place = default_positions(xt, attention_mask) if positions is None else positions
        mask = build_mask(attention_mask, cond.get("document_ids"), causal=False)
        seen = self.block(
            hidden + self.is_mask * masked[..., None], rotary(place, self.dim // self.num_heads), mask, None, None
        )
        scores = self.score(self.norm(seen, None)).squeeze(-1)
        head: Any = net.head
        law = Categorical.from_hidden(hidden, head, vocab_size=self.inner.vocab_size, forbidden=self.inner.mask_id)
        return PolicyLaw(law.with_known(xt, ~masked), scores)

    def config(self) -> dict[str, Any]:
        return {"dim": self.dim, "num_heads": self.num_heads}
