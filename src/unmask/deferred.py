"""Laws that are made when they are first used, and only for the rows that are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from unmask.law import Law, LogProbMap, SiteLaw, State
from unmask.rng import Rng


class Deferred(SiteLaw):
    """A law that is made when it is first used: a reverse step that needs no value never calls the network.

    Args:
        make: called at most once. What may be asked afterwards is what the law that it returns can do.
        make_rows: maps rows, boolean (b,), to the law of these rows alone; then draws at sites of some rows evaluate no
            others. None: always all rows.
        rows: those that will be asked about, boolean (b,), if known beforehand.
    """

    def __init__(
        self, make: Callable[[], Law], make_rows: Callable[[Tensor], Law] | None = None, rows: Tensor | None = None
    ) -> None:
        self._source = _Source(make, make_rows, rows)
        self._maps: tuple[LogProbMap, ...] = ()

    @property
    def law(self) -> Law:
        """The law of all rows, made now if it was not before."""
        whole = self._source.whole()
        return self._mapped(whole) if self._maps else whole

    def _mapped(self, law: Law) -> SiteLaw:
        if not isinstance(law, SiteLaw):
            raise TypeError(
                f"this step asks a discrete law of sites, but the denoiser returned a {type(law).__name__}; "
                "pair the process with a denoiser of its own kind"
            )
        for fn in self._maps:
            law = law.map(fn)
        return law

    def _part(self, where: Bool[Tensor, "b *s"] | None, *, at_once: bool = False) -> tuple[SiteLaw, Tensor | None]:
        """A law that knows the rows of `where`, and which rows those are (None: all)."""
        law, rows = self._source.of(None if where is None else where.flatten(1).any(1), at_once)
        return self._mapped(law), rows

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        law, rows = self._part(where)
        return law.log_probs(where if where is None or rows is None else where[rows])

    def log_weights(self, where: Bool[Tensor, "b *s"]) -> Tensor:
        law, rows = self._part(where)
        return law.log_weights(where if rows is None else where[rows])

    def sample_at(self, where: Bool[Tensor, "b *s"], rng: Rng) -> tuple[Tensor, Tensor]:
        law, rows = self._part(where, at_once=True)
        return law.sample_at(where, rng) if rows is None else law.sample_at(where[rows], rng.take(rows))

    def token_log_prob(self, x: Tensor, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        law, rows = self._part(where)
        if where is None or rows is None:
            return law.token_log_prob(x, where)
        return law.token_log_prob(x[rows], where[rows])

    def map(self, fn: LogProbMap) -> Deferred:
        mapped = Deferred(self._source.whole)
        mapped._source, mapped._maps = self._source, (*self._maps, fn)
        return mapped

    def only(self, editable: State) -> Deferred:
        return Deferred(lambda: self.law.only(editable))

    def column(self, name: str) -> Deferred:
        return Deferred(lambda: self.law.column(name))

    def draw(self, rng: Rng) -> tuple[State, State | None]:
        return self.law.draw(rng)

    def sample(self, rng: Rng) -> Any:
        return self.law.sample(rng)

    def log_prob(self, x: State) -> Tensor:
        return self.law.log_prob(x)

    @property
    def mean(self) -> Any:
        return self.law.mean


class _Source:
    """What was made so far: the law of all rows, or that of the rows named first."""

    def __init__(
        self, make: Callable[[], Law], make_rows: Callable[[Tensor], Law] | None, expected: Tensor | None
    ) -> None:
        self._make, self._make_rows, self._expected = make, make_rows, expected
        self._whole: Law | None = None
        self._some: tuple[Law, Tensor] | None = None

    def whole(self) -> Law:
        if self._whole is None:
            self._whole, self._some = self._make(), None
        return self._whole

    def of(self, rows: Tensor | None, at_once: bool) -> tuple[Law, Tensor | None]:
        """A law that knows `rows`. If they are asked about `at_once`, they are all that the step needs."""
        if rows is None or self._make_rows is None or self._whole is not None:
            return self.whole(), None
        expected = rows if self._expected is None and at_once else self._expected
        if self._some is None and expected is not None and not bool(expected.all()):
            self._some = self._make_rows(expected), expected
        if self._some is None or bool((rows & ~self._some[1]).any()):
            return self.whole(), None
        return self._some


def ask(denoiser: Callable[..., Law], x: State, t: Tensor, *, sites: Tensor | None = None, **cond: Any) -> Deferred:
    """The denoiser's law of x_0 | x_t, evaluated when it is first used and at the rows that are used.

    A row none of whose sites is asked about in a step costs nothing: finished rows stop early, and a batch in which few
    rows move pays for these.

    Args:
        denoiser: the model, or another function of (x, t, **cond).
        x: the noisy state (b, *s).
        t: times, (b,).
        sites: those that will be asked about, boolean (b, *s), if known beforehand; a draw at sites of some rows tells
            by itself, while log-probabilities may be asked for piece by piece and evaluate all rows.
        cond: conditions. Tensors whose first dimension is b belong to the rows, all others to the whole batch.
    """
    if isinstance(x, dict):
        return Deferred(lambda: denoiser(x, t, **cond))

    def some(rows: Tensor) -> Law:
        law: Law = denoiser(x[rows], t[rows], **{name: take_rows(value, rows) for name, value in cond.items()})
        return law

    return Deferred(lambda: denoiser(x, t, **cond), some, None if sites is None else sites.flatten(1).any(1))


def take_rows(value: Any, rows: Tensor) -> Any:
    """The rows of a condition: of a tensor with one for each, all of anything else."""
    per_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(rows)
    return value[rows] if per_row else value
