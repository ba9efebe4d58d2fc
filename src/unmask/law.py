"""Laws: what a denoiser and a reverse step return; sampled, scored and averaged, never a bare tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.ops import draw_categorical, one_hot
from unmask.rng import Rng
from unmask.sums import writable

State = Tensor | dict[str, Tensor]
LogProbMap = Callable[[Tensor], Tensor]
_BLOCK = 1 << 22  # log-probabilities alive at once while drawing


class Law(ABC):
    """A probability law over states with batch-first shape (b, *s)."""

    @abstractmethod
    def sample(self, rng: Rng) -> State:
        """One draw per batch row."""

    @abstractmethod
    def log_prob(self, x: State) -> Tensor:
        """Log-probability (or log-density) of each row, nats, shape (b,)."""

    @property
    @abstractmethod
    def mean(self) -> State:
        """The expectation; for categorical sites, of the one-hot vectors."""

    def draw(self, rng: Rng) -> tuple[State, State | None]:
        """A sample with the log-probability of each site's newly drawn value (NaN where none was drawn)."""
        return self.sample(rng), None

    def only(self, editable: State) -> Law:
        """The law with work spared where `editable` is False: what is drawn there is not used. Here: the law itself."""
        return self

    def column(self, name: str) -> Law:
        """The law of one named column of a product."""
        raise TypeError(f"{type(self).__name__} has no columns, so no column {name!r}; only a ProductLaw has")


class SiteLaw(Law):
    """A law that factorises over discrete sites, and can be asked about some of them only.

    `where` is a boolean mask of shape (b, *s) with n True sites; results come in row-major order of these sites.
    """

    @abstractmethod
    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        """Normalised log-probabilities, shape (n, v), or (b, *s, v) when `where` is None."""

    @abstractmethod
    def sample_at(self, where: Bool[Tensor, "b *s"], rng: Rng) -> tuple[Tensor, Tensor]:
        """Values (n,) drawn at the sites of `where`, and the log-probability (n,) that the model gives them."""

    def token_log_prob(self, x: Tensor, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        """Log-probability of the value x at each site: (n,), or (b, *s) when `where` is None."""
        picked = x if where is None else x[where]
        return self.log_probs(where).gather(-1, picked[..., None]).squeeze(-1)

    def log_weights(self, where: Bool[Tensor, "b *s"]) -> Tensor:
        """Log-probabilities (n, v) up to a constant of each row: for sums that do the normalising themselves."""
        return self.log_probs(where)

    @abstractmethod
    def map(self, fn: LogProbMap) -> SiteLaw:
        """The law with `fn` applied to its log-probabilities (n, v), e.g. a temperature; still lazy."""

    def log_prob(self, x: State) -> Tensor:
        return self.token_log_prob(_tensor(x)).flatten(1).sum(1)

    @property
    def mean(self) -> Tensor:
        return self.log_probs().exp()

    def sample(self, rng: Rng) -> Tensor:
        return _tensor(self.draw(rng)[0])


class StepLaw(SiteLaw):
    """What sites hold after a reverse step. A draw at some sites is a draw of the law of `only` these."""

    def sample_at(self, where: Bool[Tensor, "b *s"], rng: Rng) -> tuple[Tensor, Tensor]:
        drawn, scores = self.only(where).draw(rng)
        return drawn[where], scores[where]

    @abstractmethod
    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        """What stands after the step, and the log-probability that the model gave to what is new, NaN elsewhere."""

    @abstractmethod
    def only(self, editable: State) -> StepLaw:
        """Sites outside `editable` stay as they are, and no value is asked for there."""


class Categorical(SiteLaw):
    """Independent categoricals over v classes at sites (b, *s), lazy: logits exist only for the sites asked about.

    Args:
        shape: (b, *s).
        vocab_size: v.
        log_weights: maps flat site indices (n,) to unnormalised log-probabilities (n, v), fresh ones at each call: what
            it returns may be overwritten.
        token_log_prob: optional shortcut, (indices (n,), values (n,)) -> log-probabilities (n,), which must agree with
            `log_weights` (a head that scores targets in bounded memory).
        rest: what stands at the sites (b, *s) now; with it, `only` leaves sites as they are without evaluating them.

    Log-probabilities are computed in float32 at least, draws in float64 by inverse CDF.
    """

    def __init__(
        self,
        shape: torch.Size | tuple[int, ...],
        vocab_size: int,
        log_weights: Callable[[Tensor], Tensor],
        *,
        token_log_prob: Callable[[Tensor, Tensor], Tensor] | None = None,
        device: torch.device | None = None,
        rest: Int64[Tensor, "b *s"] | None = None,
    ) -> None:
        self.shape, self.vocab_size, self.device, self.rest = torch.Size(shape), vocab_size, device, rest
        self._log_weights, self._token_log_prob = log_weights, token_log_prob
        self._transforms: tuple[LogProbMap, ...] = ()

    @classmethod
    def from_logits(cls, logits: Float[Tensor, "b *s v"]) -> Categorical:
        """From a table of unnormalised log-probabilities."""
        flat = logits.flatten(0, -2)
        return cls(
            logits.shape[:-1],
            logits.shape[-1],
            lambda index: flat.index_select(0, index),
            device=logits.device,
        )

    @classmethod
    def from_hidden(
        cls, hidden: Float[Tensor, "b *s d"], head: LogProbMap, *, vocab_size: int, forbidden: int | None = None
    ) -> Categorical:
        """From hidden states and the head that turns (n, d) of them into logits (n, v).

        Class `forbidden` gets probability zero. A head may also offer `token_log_prob(hidden, targets,
        forbidden=...)`, which scores targets (n,) in bounded memory.
        """
        flat = hidden.flatten(0, -2)

        def log_weights(index: Tensor) -> Tensor:
            logits = head(flat.index_select(0, index))
            if forbidden is None:
                return logits
            logits = writable(logits)
            logits.select(1, forbidden).fill_(-torch.inf)
            return logits

        scorer: Callable[..., Tensor] | None = getattr(head, "token_log_prob", None)
        shortcut = None
        if scorer is not None:

            def shortcut(index: Tensor, values: Tensor) -> Tensor:
                return scorer(flat.index_select(0, index), values, forbidden=forbidden)

        return cls(hidden.shape[:-1], vocab_size, log_weights, token_log_prob=shortcut, device=hidden.device)

    def with_known(self, tokens: Int64[Tensor, "b *s"], known: Bool[Tensor, "b *s"]) -> Categorical:
        """The law in which the sites of `known` are certain to hold `tokens`; the rest is unchanged and as lazy."""
        flat_tokens, flat_known = tokens.flatten(), known.flatten()

        def log_weights(index: Tensor) -> Tensor:
            fixed = flat_known.index_select(0, index)
            if not bool(fixed.any()):
                return self.weights(index)
            certain = one_hot(flat_tokens[index], self.vocab_size, torch.float32).log()
            if bool(fixed.all()):
                return certain
            open_rows = self.weights(index[~fixed])
            return certain.to(open_rows.dtype).index_put((~fixed,), open_rows)

        def token_log_prob(index: Tensor, values: Tensor) -> Tensor:
            fixed = flat_known[index]
            if not bool(fixed.any()):
                return self.scores(index, values)
            certain = torch.where(flat_tokens[index] == values, 0.0, -torch.inf)
            if bool(fixed.all()):
                return certain
            open_scores = self.scores(index[~fixed], values[~fixed])
            return certain.to(open_scores.dtype).index_put((~fixed,), open_scores)

        return Categorical(self.shape, self.vocab_size, log_weights, token_log_prob=token_log_prob, device=self.device)

    def map(self, fn: LogProbMap) -> Categorical:
        law = Categorical(
            self.shape,
            self.vocab_size,
            self._log_weights,
            token_log_prob=self._token_log_prob,
            device=self.device,
            rest=self.rest,
        )
        law._transforms = (*self._transforms, fn)
        return law

    def _model_weights(self, index: Tensor) -> Tensor:
        weights = self._log_weights(index)
        return weights.float() if weights.dtype in (torch.float16, torch.bfloat16) else weights

    def _model_rows(self, index: Tensor) -> Tensor:
        return torch.log_softmax(self._model_weights(index), -1)

    def _transformed(self, log_probs: Tensor) -> Tensor:
        for fn in self._transforms:
            log_probs = torch.log_softmax(fn(log_probs), -1)
        return log_probs

    def weights(self, index: Int64[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Log-probabilities at flat site indices, up to a constant of each row."""
        return self.rows(index) if self._transforms else self._model_weights(index)

    def log_weights(self, where: Bool[Tensor, "b *s"]) -> Tensor:
        return self.weights(self._index(where))

    def rows(self, index: Int64[Tensor, " n"]) -> Float[Tensor, "n v"]:
        """Normalised log-probabilities at flat site indices."""
        return self._transformed(self._model_rows(index))

    def scores(self, index: Int64[Tensor, " n"], values: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Log-probabilities of values at flat site indices."""
        if self._token_log_prob is not None and not self._transforms:
            return self._token_log_prob(index, values)
        return self.rows(index).gather(1, values[:, None]).squeeze(1)

    def _index(self, where: Tensor | None) -> Tensor:
        if where is None:
            return torch.arange(self.shape.numel(), device=self.device)
        if where.shape != self.shape:
            raise ValueError(f"Categorical: `where` has shape {tuple(where.shape)}, wanted {tuple(self.shape)}")
        return where.flatten().nonzero().squeeze(1)

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        rows = self.rows(self._index(where))
        return rows if where is not None else rows.reshape(*self.shape, self.vocab_size)

    def token_log_prob(self, x: Tensor, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        index = self._index(where)
        scores = self.scores(index, x.flatten()[index])
        return scores if where is not None else scores.reshape(self.shape)

    def sample_at(self, where: Bool[Tensor, "b *s"], rng: Rng) -> tuple[Tensor, Tensor]:
        index, size = self._index(where), max(1, _BLOCK // self.vocab_size)
        if len(index) <= size:
            return self._sample_block(index, rng)
        tokens, log_probs = zip(*(self._sample_block(part, rng) for part in index.split(size)), strict=True)
        return torch.cat(tokens), torch.cat(log_probs)

    def _sample_block(self, index: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        log_probs = self._model_rows(index)
        tokens = draw_categorical(self._transformed(log_probs), rng.uniform_at(index, self.shape))
        return tokens, log_probs.gather(1, tokens[:, None]).squeeze(1)

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        everywhere = torch.ones(self.shape, dtype=torch.bool, device=self.device)
        tokens, log_probs = self.sample_at(everywhere, rng)
        return tokens.reshape(self.shape), log_probs.reshape(self.shape)

    def only(self, editable: State) -> Law:
        """The other sites keep what stands there, unasked, if `rest` tells what that is."""
        return self if self.rest is None else SomeSites(self, _tensor(editable), self.rest)


class Annotated(SiteLaw):
    """Another law with something more to tell, which a subclass keeps: the base forwards all but `map`."""

    def __init__(self, law: SiteLaw) -> None:
        self.law = law

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        return self.law.log_probs(where)

    def log_weights(self, where: Bool[Tensor, "b *s"]) -> Tensor:
        return self.law.log_weights(where)

    def sample_at(self, where: Bool[Tensor, "b *s"], rng: Rng) -> tuple[Tensor, Tensor]:
        return self.law.sample_at(where, rng)

    def token_log_prob(self, x: Tensor, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        return self.law.token_log_prob(x, where)

    def draw(self, rng: Rng) -> tuple[State, State | None]:
        return self.law.draw(rng)


class SomeSites(SiteLaw):
    """A law whose draws are made at the sites of `where` only; the others hold `rest` for certain."""

    def __init__(self, law: Categorical, where: Bool[Tensor, "b *s"], rest: Int64[Tensor, "b *s"]) -> None:
        self.law, self.where, self.rest = law, where, rest

    @property
    def _whole(self) -> Categorical:
        return self.law.with_known(self.rest, ~self.where)

    def draw(self, rng: Rng) -> tuple[Tensor, Tensor]:
        scores = torch.full(self.rest.shape, torch.nan, device=self.rest.device)
        if not bool(self.where.any()):
            return self.rest, scores
        tokens, log_probs = self.law.sample_at(self.where, rng)
        return self.rest.masked_scatter(self.where, tokens), scores.masked_scatter(self.where, log_probs.to(scores))

    def log_probs(self, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        return self._whole.log_probs(where)

    def sample_at(self, where: Bool[Tensor, "b *s"], rng: Rng) -> tuple[Tensor, Tensor]:
        tokens, scores = self.draw(rng)
        return tokens[where], scores[where]

    def token_log_prob(self, x: Tensor, where: Bool[Tensor, "b *s"] | None = None) -> Tensor:
        return self._whole.token_log_prob(x, where)

    def map(self, fn: LogProbMap) -> SomeSites:
        return SomeSites(self.law.map(fn), self.where, self.rest)


@dataclass(frozen=True, eq=False)
class Dirac(Law):
    """All mass on one state."""

    value: Tensor

    def sample(self, rng: Rng) -> Tensor:
        return self.value

    def log_prob(self, x: State) -> Tensor:
        same = (_tensor(x) == self.value).flatten(1).all(1)
        return torch.where(same, 0.0, -torch.inf)

    @property
    def mean(self) -> Tensor:
        return self.value


@dataclass(frozen=True, eq=False)
class Normal(Law):
    """Independent normals: density N(x; loc, scale^2) at every site; a scale of 0 is a point mass when sampled."""

    loc: Float[Tensor, "b *s"]
    scale: Tensor

    def sample(self, rng: Rng) -> Tensor:
        noise = rng.normal(self.loc.shape, self.loc.device)
        return self.loc + self.scale * noise.to(self.loc.dtype)

    def log_prob(self, x: State) -> Tensor:
        return torch.distributions.Normal(self.loc, self.scale).log_prob(_tensor(x)).flatten(1).sum(1)

    @property
    def mean(self) -> Tensor:
        return self.loc


class ProductLaw(Law):
    """Independent laws of named columns (tables, graphs, text with images)."""

    def __init__(self, laws: Mapping[str, Law]) -> None:
        self.laws = dict(laws)

    def column(self, name: str) -> Law:
        if name not in self.laws:
            raise KeyError(f"ProductLaw: no column {name!r}; it has {sorted(self.laws)}")
        return self.laws[name]

    def sample(self, rng: Rng) -> State:
        return self.draw(rng)[0]

    def only(self, editable: State) -> ProductLaw:
        if not isinstance(editable, dict):
            raise TypeError(f"ProductLaw: editable is one tensor, wanted a dict with some of {sorted(self.laws)}")
        return ProductLaw({k: law.only(editable[k]) if k in editable else law for k, law in self.laws.items()})

    def draw(self, rng: Rng) -> tuple[State, State | None]:
        drawn = {name: law.draw(rng.column(name)) for name, law in self.laws.items()}
        values = {name: _tensor(value) for name, (value, _) in drawn.items()}
        return values, {name: _tensor(score) for name, (_, score) in drawn.items() if score is not None}

    def log_prob(self, x: State) -> Tensor:
        if not isinstance(x, dict):
            raise TypeError(f"ProductLaw: x is a {type(x).__name__}, wanted a dict with {sorted(self.laws)}")
        return torch.stack([law.log_prob(x[name]) for name, law in self.laws.items()]).sum(0)

    @property
    def mean(self) -> State:
        return {name: _tensor(law.mean) for name, law in self.laws.items()}


def _tensor(x: State) -> Tensor:
    if isinstance(x, dict):
        raise TypeError(f"a single-space law met a dict with columns {sorted(x)}; wanted a tensor")
    return x
