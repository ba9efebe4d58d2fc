"""Rounds of k draws: exact with the model's own conditionals, far nearer to them with a trained layer than without."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts import FALSE_ALARM, PaddedChain, SamplerContract
from helpers import fit
from unmask import Denoiser, Rng, sample, time_grid, trajectory
from unmask.denoisers.adjust import Adjusted, RoundLaw
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.adjust import JointDistillation
from unmask.losses.any_order import AnyOrderNLL
from unmask.nn.transformer import TransformerConfig
from unmask.oracles.statistics import chi_square
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.adjust import JointUnmask
from unmask.samplers.unmask import Unmask, per_step
from unmask.select.left_to_right import left_to_right
from unmask.select.top_probability import top_probability

PROCESS = Masked(vocab_size=4, mask_id=3)
LENGTH = 4
ORDERS = list(itertools.permutations(range(LENGTH)))[::3]


class AskedAgain(Denoiser):
    """The perfect layer: the model itself, asked before each draw."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> RoundLaw:
        return RoundLaw(self.inner(xt, t, **cond), lambda x: self.inner(x, t, **cond))


class TestRounds(SamplerContract):
    def make(self) -> tuple[JointUnmask, Masked]:
        return JointUnmask(process=PROCESS, tokens_per_call=2), PROCESS

    def model(self) -> tuple[JointUnmask, Masked, Denoiser]:
        sampler, process = self.make()
        return sampler, process, AskedAgain(self.world().denoiser(process))

    def test_padding_amount_and_side_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[override]
        monkeypatch.setattr("contracts.PaddedChain", lambda vocab_size: AskedAgain(PaddedChain(vocab_size)))
        super().test_padding_amount_and_side_change_nothing()


class TestByConfidenceAndTemperature(TestRounds):
    num_steps = 2

    def make(self) -> tuple[JointUnmask, Masked]:
        order = top_probability(noise=0.5)
        return JointUnmask(process=PROCESS, tokens_per_call=3, order=order, temperature=0.7), PROCESS


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_with_the_models_conditionals_one_pass_draws_the_joint_law(noise: float) -> None:
    world, n = TinyJoint.random(3, 3, seed=5), 50_000
    model = AskedAgain(world.denoiser(PROCESS))
    sampler = JointUnmask(process=PROCESS, tokens_per_call=3, order=top_probability(noise=noise))
    (event,) = trajectory(sampler, model, PROCESS.prior((n, 3), Rng(0)), time_grid(1), rng=Rng(1))
    counts = state_index(event.canvas, 3).bincount(minlength=27)
    assert chi_square(counts, world.probs) > FALSE_ALARM
    torch.testing.assert_close(event.commit_log_prob.double().sum(1), world.log_prob(event.canvas), atol=1e-4, rtol=0)


def test_the_next_site_is_chosen_by_the_adjusted_law() -> None:
    """a is likelier than b, and b than c; but when a is known, c is all but known."""
    a, b = torch.tensor([0.6, 0.4]), torch.tensor([0.55, 0.45])
    world = TinyJoint(torch.einsum("a,b,ac->abc", a, b, torch.tensor([[0.8, 0.2], [0.1, 0.9]])))
    process = Masked(vocab_size=3, mask_id=2)
    sampler = JointUnmask(process=process, tokens_per_call=2, order=top_probability())
    canvas = torch.full((32, 3), 2)
    first, _ = trajectory(sampler, AskedAgain(world.denoiser(process)), canvas, time_grid(2), rng=Rng(0))
    assert torch.equal(first.newly_set, torch.tensor([[True, False, True]]).expand(32, -1))


def sharp(seed: int) -> TinyJoint:
    return TinyJoint.random(3, LENGTH, seed=seed, sharpness=2.0)


def taught(model: MaskedDenoiser, dim: int, data: Callable[[int], Tensor], *, steps: int, seed: int) -> Adjusted:
    """A layer that learnt the frozen model's conditionals."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = Adjusted(model, dim=dim, num_heads=2)
    loss = JointDistillation(process=PROCESS, teacher=model, tokens_per_call=LENGTH)
    fit([p for p in layer.parameters() if p.requires_grad], loss, layer, data, steps=steps, seed=seed + 10)
    return layer.eval()


@cache
def quick() -> tuple[MaskedDenoiser, Adjusted]:
    """A model of large random weights, whose sites depend on each other strongly, and a layer that saw its samples."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = TransformerConfig(vocab_size=4, dim=16, num_layers=1, num_heads=2, max_length=8, tie_embeddings=False)
        net = config.build()
        for weight in (p for p in net.parameters() if p.ndim == 2):
            nn.init.normal_(weight, std=0.3)
    model = MaskedDenoiser(net, vocab_size=4, mask_id=3).eval()
    pool = sample(Unmask(process=PROCESS, quota=per_step(1)), model, (2560, LENGTH), num_steps=LENGTH, rng=Rng(0))
    return model, taught(model, 16, lambda step: pool[32 * step : 32 * step + 32], steps=80, seed=1)


def of_world(seed: int, steps: int) -> tuple[MaskedDenoiser, Adjusted]:
    """A model of a sharp world, frozen after 300 steps, and a layer."""
    world = sharp(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = TransformerConfig(vocab_size=4, dim=32, num_layers=2, num_heads=2, max_length=8)
        model = MaskedDenoiser(config.build(), vocab_size=4, mask_id=3)

    def data(step: int) -> Tensor:
        return world.sample(128, Rng(seed).fold(step))

    fit(model.parameters(), AnyOrderNLL(process=PROCESS), model, data, steps=300, seed=seed)
    return model, taught(model, 32, data, steps=steps, seed=seed)


@torch.no_grad()
def log_law(layer: Adjusted, order: tuple[int, ...], k: int) -> Tensor:
    """log q(x) of rounds of k draws along the order, for every x; k = 1 is the frozen model's sequential law."""
    x = enumerate_states(3, LENGTH)
    rank, total = torch.tensor(order).argsort(), torch.zeros(len(x)).double()
    for begin in range(0, LENGTH, k):
        t = PROCESS.schedule.inverse(torch.full((len(x),), begin / LENGTH).double())
        law = layer(x.masked_fill(rank >= begin, 3), t)
        for number in range(begin, min(begin + k, LENGTH)):
            here = law if number == begin else law.given(x.masked_fill(rank >= number, 3))
            total = total + here.token_log_prob(x, (rank == number).expand_as(x)).double()
    return total


def divergence(layer: Adjusted, k: int) -> float:
    """KL(sequential law || law of k draws a pass), nats, averaged over eight orders."""
    nats = []
    for order in ORDERS:
        log_p, log_q = log_law(layer, order, 1), log_law(layer, order, k)
        nats.append(float((log_p.exp() * (log_p - log_q)).sum()))
    return sum(nats) / len(nats)


def check_divergences(name: str, model: MaskedDenoiser, layer: Adjusted, share: float) -> None:
    blank = Adjusted(model, dim=layer.dim, num_heads=2)
    for k in (2, 4):
        before, after = divergence(blank, k), divergence(layer, k)
        print(f"{name}, k={k}: independent {before:.3f} nats, with the layer {after:.4f}")
        assert after < share * before


def test_a_layer_brings_a_round_near_the_sequential_law() -> None:
    check_divergences("random weights", *quick(), share=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_a_trained_model_too(seed: int) -> None:
    check_divergences(f"world {seed}", *of_world(seed, 2000), share=0.25)


def test_it_draws_the_enumerated_law_of_the_layer() -> None:
    _, layer = quick()
    sampler = JointUnmask(process=PROCESS, tokens_per_call=3, order=left_to_right)
    drawn = sample(sampler, layer, (20_000, LENGTH), num_steps=2, rng=Rng(4))
    probs = log_law(layer, (0, 1, 2, 3), 3).exp()
    assert chi_square(state_index(drawn, 3).bincount(minlength=81), probs) > FALSE_ALARM


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_round_of_one_is_planned_unmasking_draw_for_draw(temperature: float) -> None:
    model, layer = quick()
    order = top_probability(noise=0.3)
    joint = JointUnmask(process=PROCESS, tokens_per_call=1, order=order, temperature=temperature)
    plain = Unmask(process=PROCESS, order=order, quota=per_step(1), temperature=temperature)
    canvas = sharp(1).sample(64, Rng(0))
    editable = Rng(1).uniform(canvas.shape) < 0.7
    a, b = (
        sample(s, d, canvas, num_steps=LENGTH, rng=Rng(2), editable=editable)
        for s, d in ((joint, layer), (plain, model))
    )
    assert torch.equal(a, b)


def test_a_row_is_done_after_one_call_for_k_masks() -> None:
    layer = Adjusted(quick()[0], dim=16, num_heads=2)
    x = torch.full((3, 8), 3)
    x[1, 3:], x[2] = 0, 1
    events = list(trajectory(JointUnmask(process=PROCESS, tokens_per_call=3), layer, x, time_grid(5), rng=Rng(0)))
    assert [int((e.canvas[0] == 3).sum()) for e in events] == [5, 2, 0, 0, 0]
    assert [int((e.canvas[1] == 3).sum()) for e in events] == [0, 0, 0, 0, 0]
    assert [e.network_calls for e in events] == [1, 2, 3, 3, 3]


def test_refuses() -> None:
    with pytest.raises(ValueError, match="tokens_per_call=0"):
        JointUnmask(process=PROCESS, tokens_per_call=0)
    with pytest.raises(ValueError, match="temperature"):
        JointUnmask(process=PROCESS, tokens_per_call=2, temperature=-1.0)
    with pytest.raises(TypeError, match="Masked"):
        JointUnmask(process=Uniform(vocab_size=3), tokens_per_call=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="RoundLaw"):
        sample(JointUnmask(process=PROCESS, tokens_per_call=2), PaddedChain(4), (2, 3), num_steps=2, rng=Rng(0))
