"""Masked sampling with latents that are re-estimated at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.denoisers.cadd import LATENT, TOKENS, EmbeddingLaw
from unmask.law import Dirac, Law, ProductLaw, State
from unmask.losses.cadd import masked_column
from unmask.processes.product import Product
from unmask.sampler import KernelSampler


@dataclass(frozen=True, kw_only=True)
class CADDSampler(KernelSampler):
    """One step of tokens and latents (x_t, z_t) from one network call:

        x_s ~ the masked process's reverse law,     z_s ~ N( a z_t + b z, c ),   a, b, c of the Gaussian's reverse law,

    where z estimates the clean latent: "soft" takes its posterior mean sum_w p(w) E_w, "hard" the embedding of the most
    probable token. With soft estimates this is `Ancestral` on the product.

    Soft is exact in the limit of many steps; hard is heuristic, the latents leaning to the mode. A latent that the
    network does not read (strength 0) changes nothing: tokens are then drawn exactly as `Ancestral` draws them.

    Args:
        process: `Product(columns={"tokens": Masked, "latent": Gaussian})`.
        estimate: "soft" or "hard".

    Raises:
        ValueError: for another estimate.

    References:
        Zheng et al., "Continuously augmented discrete diffusion model for categorical generative modeling", 2025,
        arXiv:2510.01329.
    """

    process: Product
    estimate: str = "soft"

    def __post_init__(self) -> None:
        masked_column(self, self.process)
        if self.estimate not in ("soft", "hard"):
            raise ValueError(f"CADDSampler: estimate={self.estimate!r}, wanted 'soft' or 'hard'")

    def transition(self, denoiser: Denoiser, x: State, t: Tensor, s: Tensor, **cond: Any) -> Law:
        """The law of (x_s, z_s) given (x_t, z_t)."""
        law = denoiser(x, t, **cond)
        latent = law.column(LATENT)
        if not isinstance(latent, EmbeddingLaw):
            raise TypeError(
                f"CADDSampler: the law of the latents is a {type(latent).__name__}, wanted the EmbeddingLaw of a "
                "CADDDenoiser"
            )
        if self.estimate == "hard":
            law = ProductLaw({TOKENS: law.column(TOKENS), LATENT: Dirac(latent.mode)})
        return self.process.reverse(law, x, t, s)
