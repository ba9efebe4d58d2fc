"""Any joint law on a handful of sites, with every conditional exact by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unmask.denoiser import Denoiser
from unmask.law import Categorical, Law, SiteLaw, State
from unmask.ops import draw_categorical, expand_time
from unmask.process import DiscreteProcess
from unmask.rng import Rng

Transition = Callable[[Denoiser, Tensor, Tensor, Tensor], Law]


class TinyJoint:
    """A probability table over v^l sequences: the exact world against which everything discrete is checked.

    Args:
        table: non-negative weights, shape (v,) * l; normalised here. Data tokens are 0 .. v-1; a process may have
            more states (a mask), which the data never takes.

    Raises:
        ValueError: if the table is not a hypercube, has negative or NaN weights, or no mass.
    """

    def __init__(self, table: Tensor) -> None:
        table = table.double()
        if table.ndim < 1 or len(set(table.shape)) != 1:
            raise ValueError(f"TinyJoint: table has shape {tuple(table.shape)}, wanted l equal sides (v, ..., v)")
        if not bool((table >= 0).all()) or not float(table.sum()) > 0:
            raise ValueError("TinyJoint: wanted non-negative weights with a positive sum")
        self.num_values, self.length = table.shape[0], table.ndim
        self.probs = table.flatten() / table.sum()
        self.sequences = enumerate_states(self.num_values, self.length)

    @classmethod
    def random(cls, num_values: int, length: int, *, seed: int, sharpness: float = 1.5) -> TinyJoint:
        """A table of random weights exp(sharpness * normal): strongly dependent sites, full support."""
        noise = Rng(seed).normal((1, num_values**length))
        return cls(noise.mul(sharpness).exp().reshape((num_values,) * length))

    @property
    def entropy(self) -> float:
        """Nats per sequence."""
        return float(-torch.special.xlogy(self.probs, self.probs).sum())

    def log_prob(self, x: Int64[Tensor, "b l"]) -> Float[Tensor, " b"]:
        """Exact log-probability of sequences, nats; -inf where a token is not a data value."""
        inside = ((x >= 0) & (x < self.num_values)).all(1)
        index = state_index(x.clamp(0, self.num_values - 1), self.num_values)
        return torch.where(inside, self.probs[index].log(), -torch.inf)

    def sample(self, num_samples: int, rng: Rng) -> Int64[Tensor, "n l"]:
        """Independent draws of the data."""
        u = rng.uniform((num_samples,))
        cdf = self.probs.cumsum(0)
        return self.sequences[torch.searchsorted(cdf, u * cdf[-1], right=True)]

    def posterior(self, process: DiscreteProcess, xt: Int64[Tensor, "b l"], t: Tensor) -> Float[Tensor, "b n"]:
        """p(x_0 = sequence | x_t) over all n = v^l sequences, by Bayes' rule; at t = 1, its limit from below.

        Raises:
            ValueError: if some x_t cannot be reached from any data.
        """
        evidence = site_evidence(process, xt, t).log()
        site = torch.arange(self.length)
        joint = self.probs.log() + evidence[:, site, self.sequences].sum(-1)
        if bool(joint.amax(1).isinf().any()):
            row = int(joint.amax(1).isinf().nonzero()[0])
            raise ValueError(f"TinyJoint: x_t={xt[row].tolist()} has probability zero under {process} at this time")
        return joint.softmax(1)

    def conditionals(self, process: DiscreteProcess, xt: Tensor, t: Tensor) -> Float[Tensor, "b l v"]:
        """p(x_0^i = . | x_t) at every site, over the process's states."""
        weights = self.posterior(process, xt, t)
        out = torch.zeros(len(xt), self.length, process.vocab_size, dtype=torch.float64)
        index = self.sequences.T[None].expand(len(xt), -1, -1)
        return out.scatter_add(2, index, weights[:, None].expand(-1, self.length, -1))

    def denoiser(self, process: DiscreteProcess) -> TableDenoiser:
        """The exact denoiser for a process."""
        return TableDenoiser(lambda xt, t: self.conditionals(process, xt, t))

    def noised(self, process: DiscreteProcess, t: float) -> Float[Tensor, " k"]:
        """The exact law of x_t over all k = vocab_size^l states."""
        time = torch.tensor(t, dtype=torch.float64)
        site_laws = process.marginal(
            torch.eye(process.vocab_size, dtype=torch.float64), time.expand(process.vocab_size)
        )
        return mix_products(self.probs, site_laws[self.sequences])

    def sampler_law(
        self, transition: Transition, denoiser: Denoiser, process: DiscreteProcess, times: Float[Tensor, " n"]
    ) -> Float[Tensor, " k"]:
        """The exact law of a sampler's output over all k = vocab_size^l states, by recursion over the states.

        Args:
            transition: (denoiser, x, t, s) -> the site-wise law of x_s given x_t = x, such as `Ancestral.transition`.
            denoiser: the model, exact or not.
            times: the sampler's decreasing grid.
        """
        states = enumerate_states(process.vocab_size, self.length)
        law = mix_products(torch.ones(1, dtype=torch.float64), process.prior_probs.expand(1, self.length, -1))
        for t, s in itertools.pairwise(times):
            alive = law.nonzero().squeeze(1)
            step = transition(denoiser, states[alive], t.expand(len(alive)), s.expand(len(alive)))
            if not isinstance(step, SiteLaw):
                raise TypeError(
                    f"sampler_law: the kernel is a {type(step).__name__}, wanted a law of independent sites"
                )
            law = mix_products(law[alive], step.log_probs().double().exp())
        return law

    def as_states(self, process: DiscreteProcess) -> Float[Tensor, " k"]:
        """The data law over all k = vocab_size^l states of the process (zero where a token is not data)."""
        out = torch.zeros(process.vocab_size**self.length, dtype=torch.float64)
        return out.index_add(0, state_index(self.sequences, process.vocab_size), self.probs)


class TableDenoiser(Denoiser):
    """A denoiser without parameters: a function (x_t, t) -> probabilities (b, *s, v)."""

    def __init__(self, probabilities: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.probabilities = probabilities

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
        if isinstance(xt, dict):
            raise TypeError(f"TableDenoiser: met columns {sorted(xt)}, wanted one tensor of tokens")
        return Categorical.from_logits(self.probabilities(xt, t).log())


def site_evidence(process: DiscreteProcess, xt: Int64[Tensor, "b l"], t: Tensor) -> Float[Tensor, "b l v"]:
    """q(x_t^i | x_0^i = .) at every site, a hair before t = 1: tokens fixed by the user keep their limit law there."""
    t = expand_time(t, xt).clamp(max=1 - 1e-9)
    return process.likelihood(xt, torch.zeros_like(t), t)


def enumerate_states(num_values: int, length: int) -> Int64[Tensor, "n l"]:
    """All num_values^length sequences in lexicographic order."""
    return torch.tensor(list(itertools.product(range(num_values), repeat=length)))


def state_index(x: Int64[Tensor, "n l"], num_values: int) -> Int64[Tensor, " n"]:
    """The place of each sequence in `enumerate_states`."""
    place = num_values ** torch.arange(x.shape[1] - 1, -1, -1)
    return (x * place).sum(1)


def mix_products(weights: Float[Tensor, " n"], sites: Float[Tensor, "n l v"]) -> Float[Tensor, " k"]:
    """sum_n weights[n] prod_i sites[n, i, x_i] for every state x, in lexicographic order."""
    out = weights[:, None]
    for i in range(sites.shape[1]):
        out = (out[:, :, None] * sites[:, i, None, :]).flatten(1)
    return out.sum(0)


def draw_states(law: Float[Tensor, " k"], num_samples: int, rng: Rng) -> Int64[Tensor, " n"]:
    """Indices of states drawn from a law."""
    return draw_categorical(law.log().expand(num_samples, -1), rng.uniform((num_samples,)))
