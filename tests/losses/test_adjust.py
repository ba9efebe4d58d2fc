"""The loss of a round: zero for the sequential law, the information between sites for independent draws."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from contracts import PaddedChain
from helpers import padded
from unmask import Categorical, Denoiser, Rng
from unmask.denoisers.adjust import RoundLaw
from unmask.losses.adjust import JointDistillation
from unmask.oracles.tiny_joint import TinyJoint
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform

PROCESS = Masked(vocab_size=4, mask_id=3)


class Blind(Denoiser):
    """Its law takes no notice of what is drawn."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, xt: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: object) -> RoundLaw:
        law: Categorical = self.inner(xt, t, attention_mask=attention_mask, **cond)
        return RoundLaw(law, lambda x: law.with_known(x, x != PROCESS.mask_id))


class AskedAgain(Denoiser):
    """The sequential law itself: the model is asked before each draw."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, xt: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: object) -> RoundLaw:
        def law(x: Tensor) -> Categorical:
            asked: Categorical = self.inner(x, t, attention_mask=attention_mask, **cond)
            return asked

        return RoundLaw(law(xt), law)


def entropy_of(world: TinyJoint, sites: tuple[int, ...]) -> float:
    """Nats of the sites' joint law."""
    table = world.probs.reshape((world.num_values,) * world.length)
    others = [i for i in range(world.length) if i not in sites]
    p = (table.sum(others) if others else table).flatten()
    return float(-torch.special.xlogy(p, p).sum())


def independent_cost(world: TinyJoint, k: int) -> float:
    """The mean over n = 1..3 of the information that k independent draws lose, in closed form, three sites."""
    h = {s: entropy_of(world, s) for r in range(4) for s in itertools.combinations(range(3), r)}
    two = sum(h[(i,)] + h[(j,)] - h[(i, j)] for i, j in itertools.combinations(range(3), 2)) / 3
    given_one = 0.0
    for i in range(3):
        j, m = sorted({0, 1, 2} - {i})
        pair = h[tuple(sorted((i, j)))] + h[tuple(sorted((i, m)))]
        given_one += (pair - h[(0, 1, 2)] - h[(i,)]) / 3
    total = h[(0,)] + h[(1,)] + h[(2,)] - h[(0, 1, 2)]
    return (given_one + {2: two, 3: total}[k]) / 3


@pytest.mark.parametrize("k", [2, 3])
def test_independent_draws_lose_the_information_between_the_sites_of_a_round(k: int) -> None:
    """x_0 from the teacher's law: E loss is pairwise information, or the total correlation, averaged over rounds."""
    world, n = TinyJoint.random(3, 3, seed=2), 40_000
    exact = world.denoiser(PROCESS)
    values = JointDistillation(process=PROCESS, teacher=exact, tokens_per_call=k)(
        Blind(exact), world.sample(n, Rng(0)), Rng(1)
    )
    z = float((values.mean() - independent_cost(world, k)) / values.std() * n**0.5)
    assert abs(z) < 5.3
    assert independent_cost(world, k) > 0.08


def test_the_sequential_law_costs_nothing() -> None:
    world = TinyJoint.random(3, 3, seed=2)
    exact = world.denoiser(PROCESS)
    loss = JointDistillation(process=PROCESS, teacher=exact, tokens_per_call=3)
    values = loss(AskedAgain(exact), world.sample(500, Rng(0)), Rng(1))
    assert float(values.abs().max()) < 1e-12
    assert not loss.bound


def test_rows_and_padding_do_not_matter() -> None:
    chain = PaddedChain(4)
    loss = JointDistillation(process=PROCESS, teacher=chain, tokens_per_call=3)
    x0 = (Rng(2).uniform((12, 5)) * 3).long()
    together = loss(Blind(chain), x0, Rng(0).rows(torch.arange(12)))
    for i in range(12):
        alone = loss(Blind(chain), x0[i : i + 1], Rng(0).rows(torch.tensor([i])))
        torch.testing.assert_close(alone, together[i : i + 1])
    tokens, mask = padded(x0, 2, 1)
    torch.testing.assert_close(loss(Blind(chain), tokens, Rng(0), attention_mask=mask), together)
    one = loss(Blind(chain), x0[:, :1], Rng(0))
    assert torch.equal(one, torch.zeros_like(one)), "a single mask is the frozen model's own draw"


def test_refuses() -> None:
    world = TinyJoint.random(3, 3, seed=2)
    exact = world.denoiser(PROCESS)
    with pytest.raises(ValueError, match="tokens_per_call=1"):
        JointDistillation(process=PROCESS, teacher=exact, tokens_per_call=1)
    with pytest.raises(TypeError, match="Masked"):
        JointDistillation(process=Uniform(vocab_size=3), teacher=exact, tokens_per_call=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="RoundLaw"):
        JointDistillation(process=PROCESS, teacher=exact, tokens_per_call=2)(exact, world.sample(4, Rng(0)), Rng(1))
