"""The integral divergence of a few-step student: its gradient, its discriminator, and what they teach."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts import PaddedChain
from helpers import fit, padded
from unmask import Categorical, Denoiser, Rng, time_grid
from unmask.guidance.classifier import ClassifierGuided
from unmask.losses.any_order import AnyOrderNLL
from unmask.losses.divergence_instruct import Discriminator, DivergenceInstruct
from unmask.nn.transformer import TransformerConfig
from unmask.oracles.statistics import kl_divergence
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral

BITS = Masked(vocab_size=3, mask_id=2)
NODES = [(0.5 - 0.5 * 0.6**0.5, 5 / 18), (0.5, 8 / 18), (0.5 + 0.5 * 0.6**0.5, 5 / 18)]  # exact to degree 5 in t


class Table(Denoiser):
    """Logits of bits for each canvas, float64 parameters that begin at the exact conditionals of a world."""

    def __init__(self, world: TinyJoint) -> None:
        super().__init__()
        states = enumerate_states(3, world.length)
        exact = world.conditionals(BITS, states, torch.full((len(states),), 0.5).double())
        self.logits = nn.Parameter(exact[..., :2].clamp(min=1e-6).log())

    def forward(self, xt: Any, t: Tensor, **cond: Any) -> Categorical:
        logits = nn.functional.pad(self.logits[state_index(xt, 3)], (0, 1), value=-torch.inf)
        return Categorical.from_logits(logits).with_known(xt, xt != 2)


def two_step_law(world: TinyJoint, student: Table) -> Tensor:
    """The student's law over the sequences of bits, its middle time integrated: a polynomial of t for three sites."""
    kernel = Ancestral(process=BITS).transition
    law = sum(w * world.sampler_law(kernel, student, BITS, torch.tensor([1.0, u, 0.0]).double()) for u, w in NODES)
    assert isinstance(law, Tensor)
    return law[state_index(world.sequences, 3)]


class ExactRatio:
    """log q_student / q_data of noised sequences by enumeration."""

    def __init__(self, world: TinyJoint, student: Table) -> None:
        self.world, self.law = world, two_step_law(world, student).detach()

    def __call__(self, z: Tensor, t: Tensor, **cond: Any) -> Tensor:
        fits = ((z[:, None] == self.world.sequences) | (z[:, None] == 2)).all(2).double()
        return (fits @ self.law).log() - (fits @ self.world.probs).log()


def test_the_mean_gradient_is_that_of_the_integral_divergence() -> None:
    """4,000 groups of 8 against the enumerated integral's gradient, for a student that is far from the data."""
    world = TinyJoint.random(2, 2, seed=3)
    student = Table(TinyJoint.random(2, 2, seed=4))
    law, states = two_step_law(world, student), enumerate_states(3, 2)
    wanted = torch.zeros((), dtype=torch.float64)
    for t, weight in NODES:  # the noise kernel's entries are quadratic in t
        q, p = (noised(rows, world, states, t) for rows in (law, world.probs))
        wanted = wanted + weight * (q * (q / p).log()).sum()
    (exact,) = torch.autograd.grad(wanted, student.logits)
    loss, seen = (
        DivergenceInstruct(process=BITS, discriminator=ExactRatio(world, student), group_size=8, standardise=False),
        [],
    )
    x0 = torch.zeros(640, 2, dtype=torch.int64)
    for k in range(50):
        values = loss(student, x0, Rng(1).fold(k))
        seen.append(torch.autograd.grad(values.mean(), student.logits)[0])
    grads = torch.stack(seen)
    z = (grads.mean(0) - exact) / (grads.std(0) / len(grads) ** 0.5).clamp(min=1e-12)
    moved = grads.std(0) > 1e-9
    assert float(z[moved].abs().max()) < 5.3
    assert float((exact / (grads.std(0) / len(grads) ** 0.5))[moved].abs().max()) > 20, "it is no test of noise"
    assert torch.equal(exact[~moved], torch.zeros_like(exact[~moved]))


def noised(law: Tensor, world: TinyJoint, states: Tensor, t: float) -> Tensor:
    """The law of z_t over the states when that of x is `law`."""
    x, z = world.sequences[:, None], states[None]
    kernel = torch.where(z == 2, t, torch.where(z == x, 1 - t, 0.0)).double().prod(2)
    return law @ kernel


def test_the_discriminator_is_pulled_to_the_log_ratio() -> None:
    """At the exact ratio the mean slope vanishes along any direction; away from it, it points back."""
    world = TinyJoint.random(2, 3, seed=3)
    student = Table(TinyJoint.random(2, 3, seed=4))
    exact, x0 = ExactRatio(world, student), world.sample(64_000, Rng(0))

    def z_scores(scale: float) -> Tensor:
        shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)

        def discriminator(z: Tensor, t: Tensor, **cond: Any) -> Tensor:
            features = torch.stack([torch.ones_like(t), (z[:, 0] == 1).double(), exact(z, t)], 1)
            return scale * exact(z, t) + features @ shift

        loss = DivergenceInstruct(process=BITS, discriminator=discriminator, group_size=2)
        means = loss.discriminate(student, x0, Rng(5)).reshape(200, -1).mean(1)
        slopes = torch.stack([torch.autograd.grad(m, shift, retain_graph=True)[0] for m in means])
        return slopes.mean(0) / slopes.std(0) * len(slopes) ** 0.5

    assert float(z_scores(1.0).abs().max()) < 5.3
    assert float(z_scores(1.5)[2]) > 10


def few_step(world: TinyJoint, model: Denoiser, process: Masked, steps: int) -> tuple[float, float, float]:
    """KL(model || data), KL(data || model) and the model's entropy with so many steps, nats."""
    with torch.no_grad():
        law = world.sampler_law(Ancestral(process=process).transition, model, process, time_grid(steps))
    data = world.as_states(process)
    return (
        kl_divergence(law, data),
        kl_divergence(data, law),
        float(-torch.special.xlogy(law, law).sum()),
    )


def test_with_the_exact_ratio_two_steps_come_nearer_to_the_data() -> None:
    """The exact denoiser is the teacher."""
    world = TinyJoint.random(2, 3, seed=2)
    teacher = Table(world)
    student = copy.deepcopy(teacher)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.08)
    x0 = torch.zeros(256, 3, dtype=torch.int64)
    for step in range(20):
        loss = DivergenceInstruct(process=BITS, discriminator=ExactRatio(world, student), group_size=16)
        optimizer.zero_grad()
        loss(student, x0, Rng(step)).mean().backward()
        optimizer.step()
    before, after = few_step(world, teacher, BITS, 2), few_step(world, student, BITS, 2)
    print(f"entropy {world.entropy:.3f}; teacher {before}, student {after}")
    assert after[0] < 0.7 * before[0]
    assert after[1] < before[1]
    assert after[2] > 0.95 * world.entropy


class Critic(nn.Module):
    """Reads tokens and time, no padding."""

    def forward(self, x: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Tensor:
        real = torch.ones_like(x) if attention_mask is None else attention_mask.long()
        return torch.sin((x * real).sum(1) * 1.3 + t)


def test_groups_do_not_depend_on_their_batch_nor_on_padding() -> None:
    process, chain = Masked(vocab_size=4, mask_id=3), PaddedChain(4)
    scale = nn.Parameter(torch.ones(()).double())

    class Scaled(Denoiser):
        def forward(self, xt: Any, t: Tensor, **cond: Any) -> Categorical:
            return chain(xt, t, **cond).map(lambda rows: rows * scale)

    loss = DivergenceInstruct(process=process, discriminator=Critic(), group_size=4)
    x0 = (Rng(2).uniform((16, 5)) * 3).long()
    for part in (loss, loss.discriminate):
        together = part(Scaled(), x0, Rng(0).rows(torch.arange(16)))
        apart = [part(Scaled(), x0[i : i + 4], Rng(0).rows(torch.arange(i, i + 4))) for i in range(0, 16, 4)]
        torch.testing.assert_close(torch.cat(apart), together)
        tokens, mask = padded(x0, 2, 1)
        torch.testing.assert_close(part(Scaled(), tokens, Rng(0), attention_mask=mask), together)
    assert not loss.bound


def test_the_discriminator_network() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TransformerConfig(vocab_size=4, dim=16, num_layers=1, num_heads=2, max_length=9).build()
        critic = Discriminator(net, dim=16)
        x, t = (Rng(2).uniform((6, 5)) * 4).long(), torch.rand(6).double()
        assert torch.equal(critic(x, t), torch.zeros(6)), "even before training"
        nn.init.normal_(critic.logit.weight)
    tokens, mask = padded(x, 1, 3)
    torch.testing.assert_close(critic(tokens, t, attention_mask=mask), critic(x, t))
    assert float(critic(x, t).detach().std()) > 0.01


def test_the_discriminator_tilts_a_student_by_its_gradient() -> None:
    """First-order guidance with minus the logit of soft tokens: log p + h times the slope towards each value."""
    h, t = 2.0, torch.full((3,), 0.5).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TransformerConfig(vocab_size=4, dim=16, num_layers=1, num_heads=2, max_length=9).build()
        critic = Discriminator(net, dim=16)
        nn.init.normal_(critic.logit.weight)
    critic.double()

    def reward(soft: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return -critic(soft.argmax(-1), t, soft_tokens=soft.double(), **cond)

    student = PaddedChain(4)
    x = torch.tensor([[3, 1, 3, 3, 3], [3, 3, 3, 3, 3], [0, 3, 2, 3, 3]])
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True] * 5])
    got = ClassifierGuided(student, reward, first_order=True, guidance_scale=h)(x, t, attention_mask=mask).log_probs()
    canvas, eps = nn.functional.one_hot(x, 4).double(), 1e-4
    for i in range(4):
        wanted = student(x, t, attention_mask=mask).log_probs()[:, i].double()
        for v in range(3):
            step = torch.zeros_like(canvas)
            step[:, i, v], step[:, i, 3] = eps, -eps
            rise = reward(canvas + step, t, attention_mask=mask) - reward(canvas - step, t, attention_mask=mask)
            wanted[:, v] += h * rise.detach() / (2 * eps)
        masked = x[:, i] == 3
        torch.testing.assert_close(got[masked, i], wanted[masked].log_softmax(-1), atol=1e-5, rtol=0)
    assert float((got - student(x, t, attention_mask=mask).log_probs())[x == 3].nan_to_num().abs().max()) > 0.1


# -- a discriminator that has to be learnt -----------------------------------------------------------------------

TRITS = Masked(vocab_size=4, mask_id=3)


def features(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([nn.functional.one_hot(x, 4).flatten(1).float(), t.float()[:, None]], 1)


def perceptron(out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(13, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, out))


class Perceptron(Denoiser):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(9)

    def forward(self, xt: Any, t: Tensor, **cond: Any) -> Categorical:
        logits = self.net(features(xt, torch.zeros_like(t))).unflatten(1, (3, 3))
        law = Categorical.from_logits(nn.functional.pad(logits, (0, 1), value=-torch.inf))
        return law.with_known(xt, xt != 3)


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(1)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.net(features(x, t)).squeeze(-1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_with_a_learnt_discriminator_two_steps_come_nearer_too(seed: int) -> None:
    world = TinyJoint.random(3, 3, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher, judge = Perceptron(), Judge()
    fit(
        teacher.parameters(),
        AnyOrderNLL(process=TRITS),
        teacher,
        lambda step: world.sample(128, Rng(seed).fold(step)),
        steps=500,
        seed=seed,
    )
    student, loss = copy.deepcopy(teacher), DivergenceInstruct(process=TRITS, discriminator=judge, group_size=16)
    slow, fast = torch.optim.Adam(student.parameters(), lr=1e-3), torch.optim.Adam(judge.parameters(), lr=2e-3)
    for step in range(-60, 100):
        for group in slow.param_groups:
            group["lr"] = 1e-3 * min(1.0, 2 * (1 - step / 100))
        for part in range(5):
            rng = Rng(seed).fold(5, step, part)
            fast.zero_grad()
            loss.discriminate(student, world.sample(512, rng.fold(9)), rng).mean().backward()
            fast.step()
        if step >= 0:
            slow.zero_grad()
            loss(student, world.sample(256, Rng(0)), Rng(seed).fold(6, step)).mean().backward()
            slow.step()
    for steps in (1, 2, 4):
        before, after = few_step(world, teacher, TRITS, steps), few_step(world, student, TRITS, steps)
        print(f"world {seed} (entropy {world.entropy:.3f}), {steps} steps: teacher {before}, student {after}")
        if steps == 2:
            assert after[0] < 0.9 * before[0]
            assert after[2] > 0.95 * world.entropy


def test_refuses() -> None:
    with pytest.raises(ValueError, match="group_size=1"):
        DivergenceInstruct(process=BITS, discriminator=Critic(), group_size=1)
    with pytest.raises(TypeError, match="Masked"):
        DivergenceInstruct(process=Uniform(vocab_size=3), discriminator=Critic(), group_size=2)  # type: ignore[arg-type]
    loss = DivergenceInstruct(process=BITS, discriminator=Critic(), group_size=4)
    with pytest.raises(ValueError, match="whole groups of 4"):
        loss(Table(TinyJoint.random(2, 2, seed=0)), torch.zeros(6, 2, dtype=torch.int64), Rng(0))
