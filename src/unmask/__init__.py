"""Diffusion models over any state space, discrete first."""

from unmask.denoiser import Denoiser
from unmask.law import Categorical, Deferred, Dirac, Law, Normal, ProductLaw, SiteLaw, State
from unmask.loops import Step, sample, sample_blocks, time_grid, trajectory
from unmask.loss import Loss
from unmask.process import DiscreteProcess, Interpolating, Process
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler
from unmask.schedule import GaussianSchedule, Schedule

__version__ = "0.1.0"

__all__ = [
    "Carry",
    "Categorical",
    "Deferred",
    "Denoiser",
    "Dirac",
    "DiscreteProcess",
    "GaussianSchedule",
    "Interpolating",
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
    "sample",
    "sample_blocks",
    "time_grid",
    "trajectory",
]
