"""The curriculum: its latents are the process's noise, its limit is the bound, its gradients vary less."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from contracts import FALSE_ALARM, time
from helpers import padded
from unmask import Rng
from unmask.denoisers.categorical import CategoricalDenoiser
from unmask.denoisers.plug_in import PlugIn
from unmask.losses.duo import DuoCurriculum
from unmask.nn.transformer import Transformer, TransformerConfig
from unmask.oracles.statistics import chi_square
from unmask.oracles.tiny_joint import TinyJoint
from unmask.processes.uniform import Uniform

PROCESS = Uniform(vocab_size=8)


def model(seed: int, length: int = 5) -> PlugIn:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = TransformerConfig(vocab_size=8, dim=32, num_layers=2, num_heads=2, max_length=length)
        net = Transformer(config)
        for p in net.parameters():
            if p.ndim == 2:
                torch.nn.init.normal_(p, std=0.15)
    return PlugIn(CategoricalDenoiser(net, vocab_size=8), PROCESS)


def test_the_tokens_behind_the_latents_are_the_processs_noise() -> None:
    loss, n = DuoCurriculum(process=PROCESS), 20_000
    xt = loss.latents(torch.full((n, 1), 3), time(0.6).expand(n), Rng(1)).argmax(-1).flatten()
    probs = PROCESS.marginal(torch.eye(8, dtype=torch.float64)[3], time(0.6)[0])
    assert chi_square(xt.bincount(minlength=8), probs) > FALSE_ALARM


def test_a_cold_input_gives_the_bound_of_the_same_tokens() -> None:
    """At temperature 1e-6 the softmax is one-hot: draw by draw the generic rate on the argmax tokens."""
    loss, denoiser = DuoCurriculum(process=PROCESS, temperature=1e-6), model(0)
    x0 = (Rng(5).uniform((40, 5)) * 8).long()
    value = loss(denoiser, x0, Rng(2))
    from unmask.losses.duo import _NOISE, _TIME
    from unmask.ops import low_discrepancy_uniforms

    t = low_discrepancy_uniforms(Rng(2).fold(_TIME).scalar(), torch.arange(40))
    xt = loss.latents(x0, t, Rng(2).fold(_NOISE)).argmax(-1)
    exact = PROCESS.nelbo_rate(denoiser(xt, t), x0, xt, t).sum(1)
    torch.testing.assert_close(value, exact, rtol=1e-3, atol=1e-3)


def gradient_variance(loss: DuoCurriculum, denoiser: PlugIn, x0: Tensor, draws: int = 24) -> float:
    """Summed variance of the gradient's entries over draws of the noise, for the same data and network."""
    seen = []
    for k in range(draws):
        value = loss(denoiser, x0, Rng(k)).mean()
        gradient = torch.autograd.grad(value, [p for p in denoiser.parameters() if p.requires_grad], allow_unused=True)
        seen.append(torch.cat([g.flatten() for g in gradient if g is not None]))
    return float(torch.stack(seen).var(0).sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_soft_inputs_lower_the_variance_of_the_gradient(seed: int) -> None:
    """The paper's claim, by at least a tenth, on a network with weights that make its inputs matter."""
    world = TinyJoint.random(8, 4, seed=seed, sharpness=3.0)
    x0, denoiser = world.sample(32, Rng(seed)), model(seed, length=4)
    soft = gradient_variance(DuoCurriculum(process=PROCESS, temperature=1.0), denoiser, x0)
    hard = gradient_variance(DuoCurriculum(process=PROCESS, temperature=1e-6), denoiser, x0)
    print(f"seed {seed}: variance ratio {soft / hard:.3f}")
    assert soft < 0.9 * hard


def test_padding_and_batches_change_nothing() -> None:
    loss, denoiser = DuoCurriculum(process=PROCESS, temperature=0.3), model(0, length=9)
    x0 = (Rng(5).uniform((6, 5)) * 8).long()
    plain = loss(denoiser, x0, Rng(2))
    tokens, mask = padded(x0, 1, 2)
    torch.testing.assert_close(loss(denoiser, tokens, Rng(2), attention_mask=mask), plain, rtol=1e-4, atol=1e-4)
    alone = torch.cat([loss(denoiser, x0[i : i + 1], Rng(2).rows(torch.tensor([i]))) for i in range(6)])
    torch.testing.assert_close(alone, plain, rtol=1e-4, atol=1e-4)


def test_the_curriculum_ends_at_the_bound_and_refuses_zero() -> None:
    loss = DuoCurriculum(process=PROCESS, temperature=0.4)
    assert loss.at(0.75).temperature == pytest.approx(0.1)
    assert not loss.bound
    with pytest.raises(ValueError, match="NELBO"):
        loss.at(1.0)


def test_a_window_holds_all_times() -> None:
    """Windows that split [0, 1] share the whole loss between them, and a narrow one is the rate at its time."""
    x0 = (Rng(5).uniform((1000, 2)) * 8).long()
    denoiser, edges = model(0, length=2), (0.0, 0.3, 1.0)

    def mean(window: tuple[float, float]) -> tuple[float, float]:
        values = DuoCurriculum(process=PROCESS, temperature=0.3, window=window)(denoiser, x0, Rng(2)).detach()
        return float(values.mean()), float(values.std() / len(values) ** 0.5)

    parts = [(b - a) * mean((a, b))[0] for a, b in itertools.pairwise(edges)]
    whole, error = mean((0.0, 1.0))
    assert abs(sum(parts) - whole) < 5.3 * 2**0.5 * error

    loss = DuoCurriculum(process=PROCESS, temperature=1e-6, window=(0.4, 0.4 + 1e-9))
    from unmask.losses.duo import _NOISE

    t = time(0.4).expand(len(x0))
    xt = loss.latents(x0, t, Rng(2).fold(_NOISE)).argmax(-1)
    exact = PROCESS.nelbo_rate(denoiser(xt, t), x0, xt, t).sum(1)
    torch.testing.assert_close(loss(denoiser, x0, Rng(2)), exact, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="window"):
        DuoCurriculum(process=PROCESS, window=(0.5, 0.5))
