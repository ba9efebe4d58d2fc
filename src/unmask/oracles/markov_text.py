"""Text from a Markov chain: long sequences whose entropy and two-sided conditionals are known exactly."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unmask.ops import draw_categorical
from unmask.oracles.tiny_joint import TableDenoiser, site_evidence
from unmask.process import DiscreteProcess
from unmask.rng import Rng


class MarkovText:
    """A stationary Markov chain over v symbols: p(x) = pi(x_1) prod_i P[x_{i-1}, x_i].

    Conditionals given any noisy x_t, on both sides, are exact by the forward-backward algorithm (the noise is the
    emission of a hidden Markov model), at cost l v^2 per row.

    Args:
        transitions: P, shape (v, v), rows summing to 1; irreducible, so that the stationary law pi is unique.

    Raises:
        ValueError: if the rows are not probability vectors.

    References:
        Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition", Proc. IEEE 1989.
    """

    def __init__(self, transitions: Float[Tensor, "v v"]) -> None:
        matrix = transitions.double()
        if not bool((matrix >= 0).all()) or not torch.allclose(matrix.sum(1), matrix.new_ones(len(matrix))):
            raise ValueError("MarkovText: wanted non-negative rows that sum to 1")
        self.transitions, self.num_values = matrix, len(matrix)
        system = torch.cat([matrix.T - torch.eye(len(matrix)).double(), matrix.new_ones(1, len(matrix))])
        target = torch.cat([matrix.new_zeros(len(matrix)), matrix.new_ones(1)])
        self.stationary = torch.linalg.lstsq(system, target[:, None]).solution.squeeze(1).clamp(min=0)

    @classmethod
    def random(cls, num_values: int, *, seed: int, sharpness: float = 2.0) -> MarkovText:
        """A chain whose rows are softmax(sharpness * normal)."""
        return cls(Rng(seed).normal((num_values, num_values)).mul(sharpness).softmax(1))

    @property
    def entropy_rate(self) -> float:
        """lim H(x_1 .. x_l) / l, nats per symbol."""
        rows = -torch.special.xlogy(self.transitions, self.transitions).sum(1)
        return float(self.stationary @ rows)

    def entropy(self, length: int) -> float:
        """Nats per sequence of `length` symbols: H(pi) + (length - 1) entropy_rate."""
        first = -torch.special.xlogy(self.stationary, self.stationary).sum()
        return float(first) + (length - 1) * self.entropy_rate

    def sample(self, num_samples: int, length: int, rng: Rng) -> Int64[Tensor, "n l"]:
        """Independent sequences."""
        u = rng.uniform((num_samples, length))
        x = [draw_categorical(self.stationary.log().expand(num_samples, -1), u[:, 0])]
        for i in range(1, length):
            x.append(draw_categorical(self.transitions.log()[x[-1]], u[:, i]))
        return torch.stack(x, 1)

    def log_prob(self, x: Int64[Tensor, "b l"]) -> Float[Tensor, " b"]:
        """Exact log-probability, nats."""
        return self.stationary.log()[x[:, 0]] + self.transitions.log()[x[:, :-1], x[:, 1:]].sum(1)

    def conditionals(self, process: DiscreteProcess, xt: Int64[Tensor, "b l"], t: Tensor) -> Float[Tensor, "b l v"]:
        """p(x_0^i = . | x_t), given the noisy symbols on both sides, over the process's states."""
        evidence = site_evidence(process, xt, t)[..., : self.num_values]
        length = xt.shape[1]
        forward = [_unit(self.stationary * evidence[:, 0])]
        for i in range(1, length):
            forward.append(_unit((forward[-1] @ self.transitions) * evidence[:, i]))
        backward = [torch.ones_like(forward[0])]
        for i in range(length - 1, 0, -1):
            backward.append(_unit((backward[-1] * evidence[:, i]) @ self.transitions.T))
        joint = torch.stack(forward, 1) * torch.stack(backward[::-1], 1)
        out = torch.zeros(*xt.shape, process.vocab_size, dtype=torch.float64)
        out[..., : self.num_values] = _unit(joint)
        return out

    def denoiser(self, process: DiscreteProcess) -> TableDenoiser:
        """The exact denoiser for a process."""
        return TableDenoiser(lambda xt, t: self.conditionals(process, xt, t))


def _unit(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)
