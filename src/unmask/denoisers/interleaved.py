"""Laws of one element given all others, tokens and real numbers in turn."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unmask.denoiser import Denoiser
from unmask.law import Categorical, Dirac, ProductLaw, State
from unmask.processes.interleaved import TOKENS, VALUES, Interleaved


class InterleavedDenoiser(Denoiser):
    """What stood at the visited element before its visit, given all other elements.

    A visited **token** is hidden from the network, whose logits are, up to a constant, the log-odds f_a that a token a
    is signal if it stands there, as in `GlauberDenoiser`; softmax(f) is the law. Of a visited **number** y_0 the
    network sees y_u, part of its visit, and predicts the mean of y_0.

    **Conditions**: elements that are *given* were never visited. The network is told which they are, beside their
    values (a second copy of the state space, that says what is known for sure).

    Args:
        net: maps (tokens (b, l), with the symbol vocab_size where one is hidden, values (b, m), t (b,), u (b,),
            visited (b, l + m), given (b, l + m), **cond) to logits (b, l, v) and means (b, m). t is the time after the
            visit, u in (0, 1] how much of the visit a number has behind it. `attention_mask` (b, l + m) is handed on.
        process: the noise.

    References:
        Anil et al., "Interleaved Gibbs diffusion for constrained generation", 2025, arXiv:2502.13450.
    """

    def __init__(self, net: nn.Module, process: Interleaved) -> None:
        super().__init__()
        self.net, self.process = net, process

    def forward(
        self,
        xt: State,
        t: Tensor,
        *,
        u: Float[Tensor, " b"] | None = None,
        given: Bool[Tensor, "b n"] | None = None,
        **cond: Any,
    ) -> ProductLaw:
        x, visited, logits, means = self.outputs(xt, t, u=u, given=given, **cond)
        hidden = self.process.split(visited, x)[TOKENS]
        law = Categorical.from_logits(logits).with_known(x[TOKENS], ~hidden)
        return ProductLaw({TOKENS: law, VALUES: Dirac(means)})

    def outputs(
        self, xt: State, t: Tensor, *, u: Tensor | None = None, given: Tensor | None = None, **cond: Any
    ) -> tuple[dict[str, Tensor], Bool[Tensor, "b n"], Float[Tensor, "b l v"], Float[Tensor, "b m"]]:
        """(columns, the visited element, the network's logits, its means)."""
        process, x = self.process, self.process.columns(xt, "denoiser")
        real = process.real(x, cond.get("attention_mask"), "denoiser")
        visited = process.tokens.visited(process.tokens.step_of(t, real), real)
        shown = x[TOKENS].masked_fill(process.split(visited, x)[TOKENS], process.tokens.vocab_size)
        u = torch.ones_like(t) if u is None else u
        given = torch.zeros_like(visited) if given is None else given
        logits, means = self.net(shown, x[VALUES], t, u, visited, given, **cond)
        return x, visited, logits, means
