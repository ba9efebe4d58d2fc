import torch

from contracts import standard_errors
from unmask import Rng
from unmask.losses.autoregressive import AutoregressiveNLL
from unmask.oracles.tiny_joint import TableDenoiser, TinyJoint


def chain_rule(world: TinyJoint) -> TableDenoiser:
    """p(x_i | x_<i) of a tiny world, exact."""

    def probabilities(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(*x.shape, world.num_values, dtype=torch.float64)
        for i in range(world.length):
            agrees = (world.sequences[None, :, :i] == x[:, None, :i]).all(-1).double() * world.probs
            weights = torch.stack([(agrees * (world.sequences[:, i] == v)).sum(1) for v in range(world.num_values)], 1)
            out[:, i] = weights / weights.sum(1, keepdim=True)
        return out

    return TableDenoiser(probabilities)


def test_equals_the_exact_likelihood_row_by_row() -> None:
    world = TinyJoint.random(3, 3, seed=1)
    x = world.sample(200, Rng(0))
    nats = AutoregressiveNLL()(chain_rule(world), x, Rng(0))
    torch.testing.assert_close(nats, -world.log_prob(x))
    assert abs(standard_errors(nats, world.entropy)) < 5.3


def test_padding_is_not_scored() -> None:
    world = TinyJoint.random(3, 3, seed=1)
    x = world.sample(4, Rng(0))
    mask = torch.tensor([True, True, False]).expand(4, -1)
    short = AutoregressiveNLL()(chain_rule(world), x, Rng(0), attention_mask=mask)
    expected = -chain_rule(world)(x, torch.zeros(4)).token_log_prob(x)[:, :2].sum(1)
    torch.testing.assert_close(short, expected)
