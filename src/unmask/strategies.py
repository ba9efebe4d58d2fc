"""The samplers that a few plain settings name: which masks first, how many, and whether tokens are taken back."""

from __future__ import annotations

from unmask.errors import UserError
from unmask.process import Process
from unmask.processes.masked import Masked
from unmask.sampler import Sampler
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.remdm import ReMDM, cap
from unmask.samplers.unmask import Order, Unmask, by_schedule
from unmask.sampling import SamplingConfig
from unmask.select.entropy import entropy
from unmask.select.left_to_right import left_to_right
from unmask.select.margin import margin
from unmask.select.random import random_order
from unmask.select.threshold import threshold
from unmask.select.top_probability import top_probability


def make_sampler(process: Process, config: SamplingConfig) -> Sampler:
    """The sampler that a configuration asks for: its own, re-masking, a planned order, or ancestral sampling.

    Raises:
        UserError: an order, a threshold or re-masking for noise other than masks.
    """
    if config.sampler is not None:
        return config.sampler
    if config.order is None and config.threshold is None and config.remask is None:
        return Ancestral(process=process, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    if not isinstance(process, Masked):
        raise UserError(
            f"sampling: order, threshold and remask are for masked models, this one's noise is {type(process).__name__}"
        )
    if config.remask is not None:
        return ReMDM(
            process=process,
            sigma=cap(config.remask),
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
        )
    return Unmask(
        process=process,
        order=_order(config.order or "top-probability"),
        quota=by_schedule if config.threshold is None else threshold(config.threshold),
        temperature=config.temperature,
    )


def _order(name: str) -> Order:
    orders: dict[str, Order] = {
        "random": random_order,
        "left-to-right": left_to_right,
        "top-probability": top_probability(),
        "margin": margin(),
        "entropy": entropy(),
    }
    return orders[name]
