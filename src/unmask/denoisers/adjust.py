"""A frozen denoiser with one more layer, which learns what each drawn token says about the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unmask.denoiser import Denoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.law import Annotated, Categorical, LogProbMap, SiteLaw, State
from unmask.nn.transformer import Block, Norm, TransformerConfig, build_mask, default_positions, rotary


class RoundLaw(Annotated):
    """The law of x_0 | x_t that can be asked again when some of its tokens are drawn.

    Args:
        law: before the first draw.
        given: maps the canvas (b, *s), that of x_t with some masks replaced by tokens, to the law of the rest.
    """

    def __init__(self, law: SiteLaw, given: Callable[[Tensor], SiteLaw]) -> None:
        super().__init__(law)
        self._given = given

    def given(self, x: Int64[Tensor, "b *s"]) -> SiteLaw:
        """The law of the rest, when the canvas has become x."""
        return self._given(x)

    def map(self, fn: LogProbMap) -> RoundLaw:
        return RoundLaw(self.law.map(fn), lambda x: self._given(x).map(fn))


class Adjusted(Denoiser):
    """The frozen denoiser's own law, which one more layer adjusts to the tokens drawn since:

        h = net(x_t, t),   u_i = h_i + A e(y_i) [i was drawn since],   law of the rest = head( h + B norm(Block(u)) ).

    y is the canvas after the draws, e the frozen embedding scaled to unit root mean square, A and B matrices. B = 0
    before training, when the law of the rest is that of x_t: independent draws. Only A, the block and B learn; the head
    and the network are frozen, so that k tokens cost one pass of the network and k - 1 of a single layer.

    Args:
        inner: the denoiser, whose network has its token embedding as `embedding`; its parameters are frozen.
        dim: d, size of a hidden state.
        num_heads: of the layer's attention.
        mlp_ratio: size of its feed-forward part over d.

    Raises:
        TypeError: `inner` is another denoiser, or its network has no embedding.

    References:
        Bansal, Sanghavi, "Enabling approximate joint sampling in diffusion LMs", 2025, arXiv:2509.22738 (ADJUST; that
        the layer begins as the identity is ours).
    """

    def __init__(self, inner: MaskedDenoiser, *, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if not isinstance(inner, MaskedDenoiser) or not hasattr(inner.net, "embedding"):
            raise TypeError(
                f"Adjusted: met {type(inner).__name__}, wanted a MaskedDenoiser whose network embeds tokens by "
                "`embedding`, as a Transformer does"
            )
        config = TransformerConfig(
            vocab_size=inner.vocab_size, dim=dim, num_layers=1, num_heads=num_heads, max_length=1, mlp_ratio=mlp_ratio
        )
        self.inner, self.dim, self.num_heads, self.mlp_ratio = inner.requires_grad_(False), dim, num_heads, mlp_ratio
        self.enter, self.leave = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.block, self.norm = Block(config), Norm(config)
        nn.init.zeros_(self.leave.weight)

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> RoundLaw:
        """As for any denoiser; `positions` and `document_ids` mean to the layer what they mean to the network."""
        if isinstance(xt, dict):
            raise TypeError(f"Adjusted: met columns {sorted(xt)}, wanted one tensor of tokens (b, l)")
        tokens = xt
        with torch.no_grad():
            hidden = self.inner.net(tokens, t, attention_mask=attention_mask, **cond)
        positions, documents = cond.get("positions"), cond.get("document_ids")
        place = default_positions(tokens, attention_mask) if positions is None else positions
        rotation = rotary(place, self.dim // self.num_heads)
        mask = build_mask(attention_mask, documents, causal=False)

        def given(x: Tensor) -> SiteLaw:
            return self._law(self.adjust(hidden, x, x != tokens, rotation, mask), x)

        return RoundLaw(self._law(hidden, tokens), given)

    def adjust(
        self,
        hidden: Float[Tensor, "b l d"],
        x: Int64[Tensor, "b l"],
        drawn: Bool[Tensor, "b l"],
        rotation: Tensor,
        mask: Tensor | None,
    ) -> Float[Tensor, "b l d"]:
        """Hidden states after the layer."""
        net: Any = self.inner.net
        tokens = F.rms_norm(net.embedding(x), (self.dim,), eps=1e-6)  # the network's hidden states are of this size
        entered = hidden + self.enter(tokens) * drawn[..., None]
        left: Tensor = self.leave(self.norm(self.block(entered, rotation, mask, None, None), None))
        return hidden + left

    def _law(self, hidden: Tensor, x: Tensor) -> Categorical:
        net: Any = self.inner.net
        mask_id, vocab_size = self.inner.mask_id, self.inner.vocab_size
        return Categorical.from_hidden(hidden, net.head, vocab_size=vocab_size, forbidden=mask_id).with_known(
            x, x != mask_id
        )

    def config(self) -> dict[str, Any]:
        return {"dim": self.dim, "num_heads": self.num_heads, "mlp_ratio": self.mlp_ratio}


def round_law(law: object, operation: str) -> RoundLaw:
    """The law, if it can be asked again.

    Raises:
        TypeError: it cannot.
    """
    if not isinstance(law, RoundLaw):
        raise TypeError(
            f"{operation}: met a {type(law).__name__}, wanted the RoundLaw of an `Adjusted` denoiser, which can be "
            "asked again when some tokens are drawn"
        )
    return law
