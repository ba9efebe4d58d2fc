"""Counter-based randomness: every draw is a pure function of (seed, stream, row, position)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORDS = {number: np.uint64(number) for number in (_GOLDEN, _MIX_1, _MIX_2, 30, 27, 31, 12)}  # made once


def _signed(x: int) -> int:
    """The two's complement of a 64-bit word, as int64 tensors need it."""
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x


def _mix_int(z: int) -> int:
    """The finaliser of SplitMix64: a bijection of 64-bit words with full avalanche."""
    z = (z + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix_int` on words, in place."""
    z += _WORDS[_GOLDEN]
    z ^= z >> _WORDS[30]
    z *= _WORDS[_MIX_1]
    z ^= z >> _WORDS[27]
    z *= _WORDS[_MIX_2]
    z ^= z >> _WORDS[31]
    return z


def _mix_signed(z: Tensor) -> Tensor:
    """`_mix` on accelerators, which have no unsigned words."""
    z = z.add_(_signed(_GOLDEN))
    z = z.bitwise_xor_(_shift_right(z, 30)).mul_(_signed(_MIX_1))
    z = z.bitwise_xor_(_shift_right(z, 27)).mul_(_signed(_MIX_2))
    return z.bitwise_xor_(_shift_right(z, 31))


def _signed_words(rows: Tensor, sites: Tensor, key: int) -> Tensor:
    """`Rng._words` on accelerators."""
    return _mix_signed(sites * _signed(_MIX_2) + _mix_signed(rows * _signed(_GOLDEN) + _signed(key)))


def _signed_uniforms(words: Tensor) -> Tensor:
    """`Rng._uniforms` on accelerators."""
    return _shift_right(words, 12).double().add_(0.5).mul_(2.0**-52)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's ``>>`` on int64 drags the sign bit along."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


@dataclass(frozen=True, eq=False)
class Rng:
    """A stateless random stream: the same (seed, folds, row, position) always gives the same number.

    A draw hashes its address with SplitMix64 and keeps 52 bits, u = (k + 1/2) 2^-52, which lies strictly inside
    (0, 1) and is exact in float64. Nothing is consumed by drawing: `fold` makes an independent stream. Integer
    arithmetic only, so the uniforms of CPUs and accelerators agree bit for bit.

    Args:
        seed: any integer.

    Streams are addressed in three ways: `fold` (step, purpose), `rows` (global sample index of each batch row) and
    `positions` (site of each token inside its sample). Give the last two explicitly and a sample no longer depends
    on its batch, its padding or the number of processes.

    References:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (counter-based generators);
        Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
    """

    seed: int
    key: int = field(default=-1, repr=False)
    row_ids: Int64[Tensor, " b"] | None = field(default=None, repr=False)
    site_ids: Int64[Tensor, "b l"] | None = field(default=None, repr=False)
    column_ids: Mapping[str, Int64[Tensor, "b _"]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.key < 0:
            object.__setattr__(self, "key", _mix_int(int(self.seed) & _MASK))

    def fold(self, *data: int) -> Rng:
        """An independent stream named by integers, e.g. ``rng.fold(step, 2)``."""
        key = self.key
        for word in data:
            # the extra round keeps seed and word apart: mix(key ^ mix(word)) would be one constant when both are equal
            key = _mix_int(_mix_int(key ^ _MIX_1) + _mix_int(int(word) & _MASK) & _MASK)
        return Rng(self.seed, key, self.row_ids, self.site_ids, self.column_ids)

    def rows(self, rows: Int64[Tensor, " b"]) -> Rng:
        """Name the batch rows by their global sample indices, shape (b,)."""
        return replace(self, row_ids=rows)

    def positions(self, positions: Int64[Tensor, "b l"]) -> Rng:
        """Name the sites of every row, shape (b, l): with padding, count the real tokens only.

        Draws of shape (b, l, *c) then number the channels of each site, as they would without names.
        """
        return replace(self, site_ids=positions)

    def columns(self, positions: Mapping[str, Int64[Tensor, "b _"]]) -> Rng:
        """`positions` for the streams of named columns, each its own."""
        return replace(self, column_ids=positions)

    def column(self, name: str) -> Rng:
        """The stream of a named column: independent of the other columns and of their order."""
        stream = self.fold(zlib.crc32(name.encode()))
        if self.column_ids is None:
            return stream
        return replace(stream, site_ids=self.column_ids.get(name), column_ids=None)

    def take(self, rows: Bool[Tensor, " b"]) -> Rng:
        """The stream of some rows of a batch: their draws are what they were in the whole batch."""

        def taken(ids: Tensor) -> Tensor:
            return ids[rows.to(ids.device)]

        sites = None if self.site_ids is None else taken(self.site_ids)
        columns = None if self.column_ids is None else {name: taken(ids) for name, ids in self.column_ids.items()}
        return replace(self, row_ids=taken(self.row_indices(len(rows))), site_ids=sites, column_ids=columns)

    def scalar(self) -> float:
        """One uniform in (0, 1) that all rows share."""
        return ((_mix_int(self.key ^ _GOLDEN) >> 12) + 0.5) * 2.0**-52

    def row_indices(self, batch: int) -> Int64[Tensor, " b"]:
        """The global sample indices, 0 .. batch-1 unless `rows` named them."""
        if self.row_ids is None:
            return torch.arange(batch)
        if len(self.row_ids) != batch:
            raise ValueError(
                f"Rng: asked for {batch} rows but `rows` named {len(self.row_ids)}; pass one index per batch row"
            )
        return self.row_ids

    def bits(self, shape: Sequence[int], device: torch.device | None = None) -> Int64[Tensor, "b *s"]:
        """Sixty-four hashed bits per site, shape (b, *s)."""
        rows, sites = self._addresses(shape, device)
        return self._hash(rows[:, None], sites).reshape(tuple(shape))

    def _addresses(self, shape: Sequence[int], device: torch.device | None) -> tuple[Tensor, Tensor]:
        """Row indices (b,) and site indices (b or 1, number of sites)."""
        batch, sites = shape[0], math.prod(shape[1:])
        if device is None and self.site_ids is not None:
            device = self.site_ids.device
        rows = self.row_indices(batch).to(device=device, dtype=torch.int64)
        if self.site_ids is None or len(shape) == 1:
            return rows, torch.arange(sites, device=device)[None]
        if tuple(self.site_ids.shape) != tuple(shape[: self.site_ids.ndim]):
            raise ValueError(f"Rng: asked for shape {tuple(shape)} but `positions` named {tuple(self.site_ids.shape)}")
        channels = math.prod(shape[self.site_ids.ndim :])
        site = self.site_ids.to(device=device).flatten(1)[..., None]
        return rows, (site * channels + torch.arange(channels, device=device)).reshape(batch, sites)

    def _hash(self, rows: Tensor, sites: Tensor) -> Tensor:
        """The bits at (row, site), broadcast against each other."""
        if rows.is_cpu:
            return torch.from_numpy(self._words(rows, sites).view(np.int64))
        return _signed_words(rows, sites, self.key)

    def _words(self, rows: Tensor, sites: Tensor) -> NDArray[np.uint64]:
        """`_hash` on CPUs by NumPy, which has unsigned words and starts an operation in a third of the time."""
        row = _mix(rows.numpy().view(np.uint64) * _WORDS[_GOLDEN] + np.uint64(self.key))
        return _mix(sites.numpy().view(np.uint64) * _WORDS[_MIX_2] + row)

    def _uniforms(self, rows: Tensor, sites: Tensor) -> Tensor:
        """The upper 52 bits k as (k + 1/2) 2^-52."""
        if not rows.is_cpu:
            return _signed_uniforms(_signed_words(rows, sites, self.key))
        u = (self._words(rows, sites) >> _WORDS[12]).view(np.int64).astype(np.float64)
        u += 0.5
        u *= 2.0**-52
        return torch.from_numpy(u)

    def uniform(self, shape: Sequence[int], device: torch.device | None = None) -> Float64[Tensor, "b *s"]:
        """Uniforms in the open interval (0, 1), float64, shape (b, *s)."""
        rows, sites = self._addresses(shape, device)
        return self._uniforms(rows[:, None], sites).reshape(tuple(shape))

    def uniform_at(self, index: Int64[Tensor, " n"], shape: Sequence[int]) -> Float64[Tensor, " n"]:
        """``uniform(shape).flatten()[index]``, at the cost of these n numbers only."""
        count = math.prod(shape[1:])
        row, site = index // count, index % count
        if self.site_ids is None and self.row_ids is None:
            return self._uniforms(row, site)
        rows, sites = self._addresses(shape, index.device)
        site_ids = site if self.site_ids is None else sites.expand(len(rows), -1)[row, site]
        return self._uniforms(rows[row], site_ids)

    def normal(self, shape: Sequence[int], device: torch.device | None = None) -> Float64[Tensor, "b *s"]:
        """Standard normals by inversion, float64, exact in the tails down to 2^-53."""
        return torch.special.ndtri(self.uniform(shape, device))

    def bernoulli(self, p: Tensor) -> Bool[Tensor, "b *s"]:
        """True with probability `p`, elementwise; `p` has the full shape (b, *s)."""
        return self.uniform(p.shape, p.device) < p
