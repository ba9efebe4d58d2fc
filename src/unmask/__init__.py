"""Diffusion models over any state space, discrete first."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unmask.deferred import Deferred, ask
    from unmask.denoiser import Denoiser
    from unmask.law import Categorical, Dirac, Law, Normal, ProductLaw, SiteLaw, State
    from unmask.loops import Step, sample, sample_blocks, time_grid, trajectory
    from unmask.loss import Loss
    from unmask.process import DiscreteProcess, Interpolating, Process
    from unmask.rng import Rng
    from unmask.sampler import Carry, KernelSampler, Sampler
    from unmask.schedule import GaussianSchedule, Schedule
    from unmask.text import TextModel

__version__ = "0.1.0"

# where each public name lives; loaded when first used, so that `unmask --help` does not wait for torch
_HOMES = {
    "denoiser": ("Denoiser",),
    "deferred": ("Deferred", "ask"),
    "law": ("Categorical", "Dirac", "Law", "Normal", "ProductLaw", "SiteLaw", "State"),
    "loops": ("Step", "sample", "sample_blocks", "time_grid", "trajectory"),
    "loss": ("Loss",),
    "process": ("DiscreteProcess", "Interpolating", "Process"),
    "rng": ("Rng",),
    "sampler": ("Carry", "KernelSampler", "Sampler"),
    "schedule": ("GaussianSchedule", "Schedule"),
    "text": ("TextModel",),
}
_MODULES = {name: f"unmask.{module}" for module, names in _HOMES.items() for name in names}

__all__ = [
    "Carry",
    "Categorical",
    "Deferred",
    "Denoiser",
    "Dirac",
    "DiscreteProcess",
    "GaussianSchedule",
    "Interpolating",
    "KernelSampler",
    "Law",
    "Loss",
    "Normal",
    "Process",
    "ProductLaw",
    "Rng",
    "Sampler",
    "Schedule",
    "SiteLaw",
    "State",
    "Step",
    "TextModel",
    "ask",
    "sample",
    "sample_blocks",
    "time_grid",
    "trajectory",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
