"""A denoiser with a second, continuous path from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unmask.denoiser import Denoiser
from unmask.law import Annotated, LogProbMap, SiteLaw, State


class LoopholingDenoiser(Denoiser):
    """The law of x_0 given x_t and a latent h, the last hidden states of the step before:

        e = E(x_t) + g * h / |h|_rms,    h' = net(e, t),    x_0 ~ softmax(head h').

    Drawing tokens reduces what the network knew to one-hot vectors; h' carries it past the draw. Without a latent, or
    with h = 0, or with the gain g = 0 at which training begins, the law is the network's own.

    For the exact law h is useless: given x_t, what came before says nothing new about x_0 (reverse steps are Markov).
    What h buys is depth: a small network goes on computing where it left off.

    Args:
        inner: any denoiser around a network: `MaskedDenoiser`, or `PlugIn` for
            uniform noise. The network inside has its token embedding as `embedding`; what it returns, (b, l, d), is
            the latent.
        dim: d, size of a hidden state.

    Raises:
        TypeError: there is no network with an embedding inside.

    References:
        Jo et al., "Loopholing discrete diffusion: deterministic bypass of the sampling wall", 2025, arXiv:2510.19304;
        Chen, Zhang, Hinton, "Analog bits", 2022, arXiv:2208.04202 (self-conditioning).
    """

    def __init__(self, inner: Denoiser, *, dim: int) -> None:
        super().__init__()
        self.inner, self.dim = inner, dim
        self.gain = nn.Parameter(torch.zeros(dim))
        network_of(inner)

    def forward(
        self,
        xt: State,
        t: Tensor,
        *,
        attention_mask: Tensor | None = None,
        latent: Float[Tensor, "b l d"] | None = None,
        **cond: Any,
    ) -> LatentLaw:
        """`latent` is the `LatentLaw.latent` of the step before; None at the first."""
        net, seen = network_of(self.inner), []

        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            seen.append(output)

        hook = net.register_forward_hook(keep)
        try:
            with adding_to_embedding(net, None if latent is None else self._fed_back(latent)):
                law = self.inner(xt, t, attention_mask=attention_mask, **cond)
        finally:
            hook.remove()
        if not isinstance(law, SiteLaw):
            raise TypeError(
                f"LoopholingDenoiser: its inner denoiser returned a {type(law).__name__}, wanted a law of discrete "
                "sites"
            )
        return LatentLaw(law, seen[-1])

    def _fed_back(self, latent: Tensor) -> Tensor:
        """No bias: a latent of zeros must add nothing."""
        return F.rms_norm(latent, (self.dim,), self.gain.to(latent.dtype), eps=1e-6)

    def config(self) -> dict[str, Any]:
        return {"dim": self.dim}


class LatentLaw(Annotated):
    """A law of sites with the hidden states that it came from.

    Args:
        law: the law.
        latent: (b, l, d), to be fed to the next step.
    """

    def __init__(self, law: SiteLaw, latent: Float[Tensor, "b l d"]) -> None:
        super().__init__(law)
        self.latent = latent

    def map(self, fn: LogProbMap) -> LatentLaw:
        return LatentLaw(self.law.map(fn), self.latent)


class SelfConditioned(Denoiser):
    """Two passes on the same x_t, seen as one denoiser: a first without a latent, a second with the first one's.

    It is a denoiser like any other, so that bounds evaluated on it are bounds, of a model that runs two passes a step.
    They are not likelihoods of the loop sampler, whose latents come from earlier states.

    Args:
        inner: a denoiser that takes `latent` and returns a `LatentLaw`.
        chosen: which rows get the second pass's latent, from the number of rows; None for all of them.

    References:
        Jo et al., 2025, arXiv:2510.19304.
    """

    def __init__(self, inner: Denoiser, *, chosen: Callable[[int], Bool[Tensor, " b"]] | None = None) -> None:
        super().__init__()
        self.inner, self.chosen = inner, chosen

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> LatentLaw:
        cond |= {"attention_mask": attention_mask}
        with torch.no_grad():  # the latent is an input: no gradient flows back through the first pass
            latent = latent_of(self.inner(xt, t, **cond), "SelfConditioned").latent
        if self.chosen is not None:
            kept = self.chosen(len(latent)).to(latent.device)[:, None, None]
            latent = latent.masked_fill(~kept, 0.0)
        return latent_of(self.inner(xt, t, latent=latent, **cond), "SelfConditioned")


def latent_of(law: object, operation: str) -> LatentLaw:
    """The law, if it has a latent.

    Raises:
        TypeError: it has none.
    """
    if not isinstance(law, LatentLaw):
        raise TypeError(
            f"{operation}: met a {type(law).__name__}, wanted the LatentLaw of a LoopholingDenoiser; a wrapper around "
            "it must hand the latent on"
        )
    return law


def network_of(denoiser: nn.Module) -> nn.Module:
    """The first module inside that embeds tokens, however deep it is wrapped.

    Raises:
        TypeError: there is none.
    """
    for module in denoiser.modules():
        if isinstance(getattr(module, "embedding", None), nn.Module):
            return module
    raise TypeError(
        f"{type(denoiser).__name__} holds no network with an `embedding`; wanted a denoiser whose network embeds "
        "tokens as a Transformer does"
    )


@contextmanager
def adding_to_embedding(net: nn.Module, addition: Tensor | None) -> Iterator[None]:
    """Inside, `net.embedding` returns its vectors plus `addition` (b, l, d), so that any network can be given more."""
    if addition is None:
        yield
        return
    embedding: Any = net.embedding

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + addition.to(output.dtype)

    hook = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
