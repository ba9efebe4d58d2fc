"""Noise given by a matrix of jump rates between states: any generator, in continuous time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from unmask.ops import expand_time
from unmask.process import DiscreteProcess
from unmask.schedule import Schedule
from unmask.schedules.linear import Linear

_MAX_STATES = 4096
_ROUNDING = 1e-13  # what an eigendecomposition cannot tell from zero, relative to the largest change of a kernel
_NEVER = 1e-200  # chances below this are taken as impossible, so that their quotients stay finite


class Generator(ABC):
    """The jump rates R[y, x] >= 0 from state y to x, rows summing to zero; a subclass is a frozen dataclass.

    Only ratios of rates matter to `Matrix`: its schedule says how fast they are run through.
    """

    vocab_size: int

    @abstractmethod
    def rates(self) -> Float[Tensor, "v v"]:
        """R, float64."""


def _balanced(jumps: Float[Tensor, "v v"]) -> Float[Tensor, "v v"]:
    """The generator with these rates off the diagonal."""
    jumps = jumps - torch.diag(jumps.diagonal())
    return jumps - torch.diag(jumps.sum(1))


@dataclass(frozen=True, kw_only=True)
class UniformRates(Generator):
    """To every state alike: R = 1 / v - I."""

    vocab_size: int

    def rates(self) -> Float[Tensor, "v v"]:
        return _balanced(torch.full((self.vocab_size,) * 2, 1 / self.vocab_size, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class AbsorbingRates(Generator):
    """From every state into `mask_id`, for good."""

    vocab_size: int
    mask_id: int

    def __post_init__(self) -> None:
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(f"AbsorbingRates: mask_id={self.mask_id} is not one of the {self.vocab_size} states")

    def rates(self) -> Float[Tensor, "v v"]:
        jumps = torch.zeros((self.vocab_size,) * 2, dtype=torch.float64)
        jumps[:, self.mask_id] = 1.0
        return _balanced(jumps)


@dataclass(frozen=True, kw_only=True)
class GaussianRates(Generator):
    """Between ordered levels, the nearer the likelier: R[i, j] = exp(-((i - j) / width)^2), i != j.

    Args:
        vocab_size: number of levels.
        width: > 0, in levels. The published kernel of noise beta has width (v - 1) sqrt(beta) / 2.
    """

    vocab_size: int
    width: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"GaussianRates: width={self.width}, wanted a positive number of levels")

    def rates(self) -> Float[Tensor, "v v"]:
        return _balanced((-((level_distances(self.vocab_size) / self.width) ** 2)).exp())


@dataclass(frozen=True, kw_only=True)
class BandRates(Generator):
    """Between ordered levels at most `bandwidth` apart, each at rate 1 / v."""

    vocab_size: int
    bandwidth: int

    def __post_init__(self) -> None:
        if self.bandwidth < 1:
            raise ValueError(f"BandRates: bandwidth={self.bandwidth}, wanted at least 1 level")

    def rates(self) -> Float[Tensor, "v v"]:
        return _balanced((level_distances(self.vocab_size) <= self.bandwidth).double() / self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class NeighbourRates(Generator):
    """Between states whose embeddings are near: R[i, j] = (1[j near i] + 1[i near j]) / (2 k), i != j.

    Args:
        neighbours: the k nearest states of each state (see `from_embeddings`).
    """

    neighbours: tuple[tuple[int, ...], ...]

    @classmethod
    def from_embeddings(cls, embeddings: Float[Tensor, "v d"], num_neighbours: int) -> NeighbourRates:
        """The `num_neighbours` nearest other states of each, by Euclidean distance."""
        if not 1 <= num_neighbours < len(embeddings):
            raise ValueError(
                f"NeighbourRates: num_neighbours={num_neighbours} of {len(embeddings)} states, wanted 1 or more, and "
                "fewer than the states"
            )
        distances = torch.cdist(embeddings.double(), embeddings.double()).fill_diagonal_(torch.inf)
        nearest = distances.argsort(dim=1, stable=True)[:, :num_neighbours]
        return cls(neighbours=tuple(tuple(row) for row in nearest.tolist()))

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return len(self.neighbours)

    def rates(self) -> Float[Tensor, "v v"]:
        near = torch.zeros((self.vocab_size,) * 2, dtype=torch.float64)
        near = near.scatter(1, torch.tensor(self.neighbours), 1.0)
        return _balanced((near + near.T) / (2 * len(self.neighbours[0])))


@dataclass(frozen=True, kw_only=True)
class TableRates(Generator):
    """Any rates R[y][x] off the diagonal; the diagonal is not read."""

    table: tuple[tuple[float, ...], ...]

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return len(self.table)

    def rates(self) -> Float[Tensor, "v v"]:
        return _balanced(torch.tensor(self.table, dtype=torch.float64))


def level_distances(vocab_size: int) -> Float[Tensor, "v v"]:
    """|i - j| between ordered levels."""
    levels = torch.arange(vocab_size, dtype=torch.float64)
    return (levels[:, None] - levels).abs()


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A generator as left diag(-decay) right, its slowest decay scaled to 1: exp(tau R) at V^3 for each tau.

    Args:
        left, right: (v, v), inverse to each other; complex for generators that are not reversible.
        decay: (v,), the first 0, the others with real part >= 1.
        rates: (v, v), the generator at this pace, exactly zero where it has no jump.
    """

    left: Shaped[Tensor, "v v"]
    decay: Shaped[Tensor, " v"]
    right: Shaped[Tensor, "v v"]
    rates: Float[Tensor, "v v"]

    @classmethod
    def of(cls, generator: Generator) -> Spectrum:
        """Decompose; by a symmetric eigenproblem where R is reversible, which keeps all digits.

        Raises:
            ValueError: for negative or non-finite rates, states that never mix, or a matrix without eigenvectors.
        """
        rates, name = generator.rates(), type(generator).__name__
        off_diagonal = rates - torch.diag(rates.diagonal())
        if not bool((off_diagonal >= 0).all() & off_diagonal.isfinite().all()):
            raise ValueError(f"{name}: some rates are negative or not finite, wanted jump rates >= 0")
        left, decay, right = _decompose(rates)
        order = decay.real.argsort()
        left, decay, right = left[:, order], decay[order], right[order]
        size = float(rates.abs().max())
        gap = float(decay[1:].real.min()) if len(decay) > 1 else 0.0
        if not gap > 1e-10 * size:
            raise ValueError(
                f"{name}: noise run for ever would still show which states the data had (no unique limit law); "
                "connect the states, e.g. by more neighbours"
            )
        rebuilt = (left * -decay @ right).real
        if not float((rebuilt - rates).abs().max()) < 1e-9 * size:
            raise ValueError(f"{name}: the rates have no full set of eigenvectors; perturb them slightly")
        decay = decay / gap
        decay[0] = 0.0
        return cls(left, decay, right, rates / gap)

    def moved(self, tau: Float[Tensor, " m"]) -> Float[Tensor, "m v v"]:
        """exp(tau R) - I, without cancellation at small tau; tau = inf is allowed."""
        change = torch.expm1(-self.decay.to(tau.device) * tau.where(tau.isfinite(), 0.0)[:, None])
        forgotten = torch.where(self.decay.to(tau.device) == 0, 0.0, -1.0).to(change)
        change = torch.where(tau.isfinite()[:, None], change, forgotten)
        return ((self.left.to(tau.device) * change[:, None, :]) @ self.right.to(tau.device)).real

    def fading(self, tau: Float[Tensor, " m"]) -> Float[Tensor, "m v v"]:
        """exp(tau R) - exp(inf R), without cancellation at large tau."""
        decay = self.decay.to(tau.device)
        left = torch.where(decay == 0, 0.0, torch.exp(-decay * tau[:, None]))
        return ((self.left.to(tau.device) * left[:, None, :]) @ self.right.to(tau.device)).real

    def kernel(self, tau: Float[Tensor, " m"]) -> Float[Tensor, "m v v"]:
        """exp(tau R); entries that rounding cannot tell from zero are zero."""
        moved = self.moved(tau)
        kernel = torch.eye(len(self.decay), dtype=torch.float64, device=tau.device) + moved
        floor = _ROUNDING * moved.abs().amax((1, 2), keepdim=True)
        return kernel.where(kernel > floor, 0.0)


def _decompose(rates: Float[Tensor, "v v"]) -> tuple[Tensor, Tensor, Tensor]:
    """R as left diag(-decay) right."""
    v = len(rates)
    system = torch.cat([rates.T, torch.ones(1, v, dtype=rates.dtype)])
    target = torch.zeros(v + 1, 1, dtype=rates.dtype)
    target[-1] = 1.0
    law = torch.linalg.lstsq(system, target, driver="gelsd").solution.squeeze(1)
    flow = law[:, None] * rates
    if bool((law > 1e-12 / v).all()) and float((flow - flow.T).abs().max()) < 1e-12 * float(flow.abs().max()):
        root = law.sqrt()
        symmetric = root[:, None] * rates / root
        decay, vectors = torch.linalg.eigh(-(symmetric + symmetric.T) / 2)
        return vectors / root[:, None], decay, vectors.T * root
    values, vectors = torch.linalg.eig(-rates)
    return vectors, values, torch.linalg.inv_ex(vectors).inverse


def _distinct(values: Shaped[Tensor, " n"]) -> tuple[Shaped[Tensor, " m"], Int64[Tensor, " n"]]:
    """The distinct values, and which of them each one is; without a sort where all are equal."""
    if bool((values == values[0]).all()):
        return values[:1], torch.zeros(len(values), dtype=torch.int64, device=values.device)
    return values.unique(return_inverse=True)


class KernelProcess(DiscreteProcess):
    """Noise whose kernels are (v, v) matrices: a subclass gives `kernels`, the two vectors follow."""

    @abstractmethod
    def kernels(self, s: Float[Tensor, " m"], t: Float[Tensor, " m"]) -> Float[Tensor, "m v v"]:
        """K[y, x] = q(x_t = x | x_s = y) for each pair of times."""

    def _grouped(self, s: Tensor, t: Tensor) -> tuple[Float[Tensor, "m v v"], Int64[Tensor, " n"]]:
        """One kernel for each distinct pair of times, and which of them each of the n sites uses."""
        starts, first = _distinct(s)
        ends, last = _distinct(t)
        if len(starts) == len(ends) == 1:
            return self._possible(starts, ends), first
        used, group = _distinct(first * len(ends) + last)
        return self._possible(starts[used // len(ends)], ends[used % len(ends)]), group

    def _possible(self, s: Tensor, t: Tensor) -> Tensor:
        kernels = self.kernels(s, t)
        return kernels.where(kernels > _NEVER, 0.0)

    def marginal(self, p0: Float[Tensor, "*s v"], t: Tensor) -> Float[Tensor, "*s v"]:
        tt = expand_time(t, p0[..., 0]).to(p0.device).expand(p0.shape[:-1]).flatten()
        if len(tt) == 0:
            return p0
        kernels, group = self._grouped(torch.zeros_like(tt), tt)
        order, counts = group.argsort(stable=True), group.bincount(minlength=len(kernels)).tolist()
        parts = p0.reshape(-1, self.vocab_size)[order].to(kernels).split(counts)
        mixed = torch.cat([part @ kernel for part, kernel in zip(parts, kernels, strict=True)])
        return mixed[order.argsort()].reshape(p0.shape)

    def likelihood(self, xt: Int64[Tensor, "*s"], s: Tensor, t: Tensor) -> Float[Tensor, "*s v"]:
        s, t = (expand_time(v, xt).to(xt.device).expand(xt.shape).flatten() for v in (s, t))
        if xt.numel() == 0:
            return torch.zeros(*xt.shape, self.vocab_size, dtype=torch.float64, device=xt.device)
        kernels, group = self._grouped(s, t)
        return kernels[group, :, xt.flatten()].reshape(*xt.shape, self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class Matrix(KernelProcess):
    """Jumps between states at the rates of a generator, run through at the pace of a schedule:

        q(x_t | x_s) = exp((tau(t) - tau(s)) R),   tau(t) = -log alpha(t),

    with R scaled so that its slowest mode decays as alpha(t). Uniform and absorbing rates are the `Interpolating`
    processes of the same schedule; Gaussian, band and neighbour rates keep x_t near x_0 at first. All kernels commute,
    so that every pair of times has one (the chains of the paper, which need not, are in `matrix_chain`).

    Dense by nature: a kernel costs v^3 operations and v^2 memory for each distinct time of a batch. Chances below
    1e-13 of a step's largest count as zero.

    Args:
        generator: the rates.
        schedule: alpha(t); with alpha(1) = 0 the end point has forgotten the data.

    Raises:
        ValueError: for rates that are no generator with a unique limit law, or more than 4,096 states.

    References:
        Austin et al., "Structured denoising diffusion models in discrete state-spaces", 2021, arXiv:2107.03006;
        Campbell et al., "A continuous time framework for discrete denoising models", 2022, arXiv:2205.14987.
    """

    generator: Generator
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        if self.vocab_size > _MAX_STATES:
            raise ValueError(
                f"Matrix: {self.vocab_size} states need kernels of {self.vocab_size**2 / 2**27:.1f} GB each; wanted at "
                f"most {_MAX_STATES}, or uniform, masked or marginal noise, whose kernels are never made"
            )
        _ = self.spectrum

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self.generator.vocab_size

    @cached_property
    def spectrum(self) -> Spectrum:
        """The decomposed generator."""
        return Spectrum.of(self.generator)

    def kernels(self, s: Float[Tensor, " m"], t: Float[Tensor, " m"]) -> Float[Tensor, "m v v"]:
        start, end = self._log_alpha(s), self._log_alpha(t)
        return self.spectrum.kernel(torch.where(start == end, 0.0, start - end))

    def _log_alpha(self, t: Tensor) -> Tensor:
        noise = self.schedule.noise(t)
        return torch.where(noise < 0.5, torch.log1p(-noise.clamp(max=0.5)), self.schedule.alpha(t).log())

    def _pace(self, t: Tensor, like: Tensor) -> Tensor:
        """tau'(t), with a trailing axis for the states."""
        return expand_time(-self.schedule.alpha_dot(t) / self.schedule.alpha(t), like)[..., None]

    def _rates_into(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        return self._pace(t, x) * self.spectrum.rates.to(x.device).T[x]

    def forward_rates(self, x: Int64[Tensor, "*s"], t: Tensor) -> Float[Tensor, "*s v"]:
        return self._pace(t, x) * self.spectrum.rates.to(x.device)[x]
