"""Corruption and one loss evaluation of every process against the masked one, same network, 50,000 states."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.measure import Row, interleaved
from bench.training import network
from unmask import Denoiser, Loss, Rng
from unmask.denoisers.categorical import CategoricalDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.denoisers.multi_mask import MultiMaskDenoiser
from unmask.denoisers.plug_in import PlugIn
from unmask.denoisers.score import ScoreDenoiser
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.losses.nelbo import NELBO
from unmask.losses.score_entropy import ScoreEntropy
from unmask.processes.gidd import GIDD
from unmask.processes.masked import Masked
from unmask.processes.multi_mask import MultiMask
from unmask.processes.token_masked import TokenMasked
from unmask.processes.uniform import Uniform
from unmask.schedules.power_vector import PowerVector

VOCABULARY, BATCH, LENGTH = 50_000, 8, 256
SHARES = 0.1, 0.03


def cases() -> dict[str, tuple[Loss, Denoiser]]:
    """Name -> loss and denoiser, all around one network."""
    v, mask_id = VOCABULARY, VOCABULARY - 1
    net = network(v)
    masked, uniform = Masked(vocab_size=v, mask_id=mask_id), Uniform(vocab_size=v)
    gidd = GIDD(vocab_size=v, mask_id=mask_id)
    levels = TokenMasked(vocab_size=v, mask_id=mask_id, schedule=PowerVector(powers=(1.5,) * v))
    many = MultiMask(vocab_size=v, mask_id=v - 4, num_masks=4)
    carry_over = MaskedDenoiser(net, vocab_size=v, mask_id=mask_id)
    softmax = PlugIn(CategoricalDenoiser(net, vocab_size=v), uniform)
    hybrid = PlugIn(CategoricalDenoiser(net, vocab_size=v, forbidden=mask_id), gidd)
    return {
        "masked": (MaskedNELBO(process=masked), carry_over),
        "masked, any order": (AnyOrderNLL(process=masked), carry_over),
        "masked, generic bound": (NELBO(process=masked), carry_over),
        "four masks": (NELBO(process=many), MultiMaskDenoiser(net, vocab_size=v, mask_id=v - 4, num_masks=4)),
        "token-dependent levels": (NELBO(process=levels), carry_over),
        "score entropy, masked": (
            ScoreEntropy(process=masked),
            ScoreDenoiser(net, process=masked, mask_id=mask_id),
        ),
        "uniform": (NELBO(process=uniform), softmax),
        **{f"uniform, {s:.0%} of the kept sites": (NELBO(process=uniform, kept_share=s), softmax) for s in SHARES},
        "GIDD": (NELBO(process=gidd), hybrid),
        **{f"GIDD, {s:.0%} of the kept sites": (NELBO(process=gidd, kept_share=s), hybrid) for s in SHARES},
    }


def evaluate(loss: Loss, denoiser: Denoiser) -> None:
    """Corruption and the loss's value."""
    x0 = torch.randint(VOCABULARY - 4, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss(denoiser, x0, Rng(0))


def rows() -> list[Row]:
    """Target 10."""
    work: dict[str, Callable[[], None]] = {name: partial(evaluate, *case) for name, case in cases().items()}
    best = interleaved(work, 3)
    return [
        Row(
            target_number="10",
            what=f"corruption and loss, {BATCH * LENGTH} tokens, {VOCABULARY} states: {name} over masked",
            value=seconds / best["masked"],
            bound=1.15,
            at_least=False,
            details=f"{name} {seconds:.2f} s, masked {best['masked']:.2f} s",
        )
        for name, seconds in best.items()
        if name != "masked"
    ]
