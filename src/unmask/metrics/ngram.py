"""An interpolated character n-gram: the likelihood that a model of text has to beat.

References:
    Witten & Bell, "The zero-frequency problem", IEEE Trans. Information Theory 37(4), 1991.
    Chen & Goodman, "An empirical study of smoothing techniques for language modeling", 1998 (recursive interpolation).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

UNICODE_SIZE = 0x110000
BLOCK = 1000
"""Characters a block of the standard error."""


@dataclass(frozen=True)
class _Level:
    """Counts of the k-grams of one k; a context is the id of the (k-1)-gram before the predicted character."""

    keys: np.ndarray  # sorted; context id * base + code
    counts: np.ndarray  # of each k-gram as a prediction: 0 if it ends in the start symbol
    totals: np.ndarray  # N(h) of each context
    types: np.ndarray  # T(h): distinct characters met after each context


class NGram:
    """Character n-gram with Witten-Bell interpolation, down to the uniform law over `num_symbols`.

    With N(h c) the count of character c after context h, N(h) their sum over c and T(h) the number of distinct c,

        p_k(c | h) = (N(h c) + T(h) p_{k-1}(c | h')) / (N(h) + T(h)),      p_0 = 1 / num_symbols,

    where h' drops the oldest character of h, and p_k = p_{k-1} for a context never met. It is normalised exactly and
    has no parameter to tune. The start of a document is a context of its own; the end of a document is not predicted.

    Args:
        order: characters in the gram, *the predicted one included*: 1 is a unigram, 4 predicts from 3 characters.
        num_symbols: size of the alphabet. The default is all of Unicode, valid for any text; its price on known
            characters is below 1e-4 bits a character from a few megabytes of training text on.

    Raises:
        ValueError: `order` < 1 or `num_symbols` < 1; in `fit`, no character, or more distinct ones than `num_symbols`.
    """

    def __init__(self, order: int = 4, num_symbols: int = UNICODE_SIZE) -> None:
        if order < 1 or num_symbols < 1:
            raise ValueError(f"n-gram: order={order}, num_symbols={num_symbols}; wanted both at least 1")
        self.order = order
        self.num_symbols = num_symbols
        self._alphabet = np.empty(0, dtype=np.uint32)
        self._levels: list[_Level] = []

    def fit(self, texts: Iterable[str]) -> NGram:
        """Count the grams of `texts`, one document each; replaces an earlier fit and returns self."""
        points = [_code_points(text) for text in texts]
        self._alphabet = np.unique(np.concatenate([np.empty(0, dtype=np.uint32), *points]))
        if not 0 < len(self._alphabet) <= self.num_symbols:
            raise ValueError(
                f"n-gram: the texts hold {len(self._alphabet)} distinct characters; wanted 1..{self.num_symbols}"
            )
        codes = self._codes(points)
        self._levels = []
        grams = np.zeros(len(codes), dtype=np.int64)
        num_contexts = 1
        for _ in range(self.order):
            context = _shift(grams)
            keys, grams, counts = np.unique(context * self._base + codes, return_inverse=True, return_counts=True)
            counts = np.where(keys % self._base == 0, 0, counts)
            owners = keys // self._base
            totals = np.bincount(owners, weights=counts, minlength=num_contexts)
            types = np.bincount(owners, weights=counts > 0, minlength=num_contexts)
            self._levels.append(_Level(keys, counts, totals, types))
            num_contexts = len(keys)
        return self

    def log2_probs(self, text: str) -> np.ndarray:
        """log2 of the probability of each character of `text` given those before it, (len(text),) float64, bits.

        Raises:
            ValueError: `fit` has not been called.
        """
        if not self._levels:
            raise ValueError("n-gram: no counts yet; call fit first")
        codes = self._codes([_code_points(text)])
        probability = np.full(len(codes), 1 / self.num_symbols)
        grams = np.zeros(len(codes), dtype=np.int64)
        for level in self._levels:
            context = _shift(grams)
            grams = _find(level.keys, np.where(context < 0, -1, context * self._base + codes))
            met = (context >= 0) & (level.totals[context] > 0)
            total, types = level.totals[context], level.types[context]
            count = np.where(grams >= 0, level.counts[grams], 0)
            mixed = (count + types * probability) / np.maximum(total + types, 1)
            probability = np.where(met, mixed, probability)
        return np.log2(probability[self.order - 1 :])

    def bits_per_character(self, texts: Iterable[str]) -> tuple[float, float]:
        """(value, standard error) of the cross-entropy on `texts`, in bits per character.

        The value is total bits over total characters; the ends of documents are not predicted. The standard error is
        that of this ratio with the texts cut into consecutive blocks of 1,000 characters (the last of a document may
        be shorter), taken as independent; it is NaN for a single block.

        Raises:
            ValueError: no character in `texts`.
        """
        bits: list[np.ndarray] = []
        sizes: list[np.ndarray] = []
        for text in filter(None, texts):
            losses = -self.log2_probs(text)
            starts = np.arange(0, len(losses), BLOCK)
            bits.append(np.add.reduceat(losses, starts))
            sizes.append(np.diff(np.append(starts, len(losses))))
        if not bits:
            raise ValueError("n-gram: the texts hold no character; give at least one")
        block_bits, block_sizes = np.concatenate(bits), np.concatenate(sizes)
        value = block_bits.sum() / block_sizes.sum()
        blocks = len(block_bits)
        if blocks == 1:
            return float(value), math.nan
        residual = ((block_bits - value * block_sizes) ** 2).sum() * blocks / (blocks - 1)
        return float(value), float(math.sqrt(residual) / block_sizes.sum())

    @property
    def _base(self) -> int:
        return len(self._alphabet) + 2

    def _codes(self, points: list[np.ndarray]) -> np.ndarray:
        """All documents in one row: 0 = start (order - 1 times before each), 1..A known, A + 1 unknown."""
        start = np.zeros(self.order - 1, dtype=np.int64)
        pieces: list[np.ndarray] = []
        for document in points:
            found = _find(self._alphabet, document)
            pieces += [start, np.where(found >= 0, found + 1, len(self._alphabet) + 1)]
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _shift(grams: np.ndarray) -> np.ndarray:
    """The gram that ends one place earlier: the context of the character here (0 before the first)."""
    context = np.zeros_like(grams)
    context[1:] = grams[:-1]
    return context


def _find(ordered: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of each `wanted` in the sorted array `ordered`, -1 where it is not there."""
    index = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[index] == wanted, index, -1).astype(np.int64)
