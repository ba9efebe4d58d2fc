"""Consistency distillation: its trajectories, its value, and fewer steps for the same error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts import FALSE_ALARM, time
from helpers import fit, padded
from unmask import Categorical, Denoiser, Rng, time_grid
from unmask.losses.consistency_distillation import ConsistencyDistillation
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TinyJoint
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral

V, LENGTH = 3, 3
PROCESS = Uniform(vocab_size=V)


class Perceptron(Denoiser):
    """A small network on the whole state and the time."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(V * LENGTH + 1, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, V * LENGTH)
            )

    def forward(self, xt: Any, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
        state = nn.functional.one_hot(xt, V).flatten(1).float()
        return Categorical.from_logits(self.net(torch.cat([state, t[:, None].float()], 1)).reshape(*xt.shape, V))


def test_trajectories_pass_through_the_processs_noise_and_end_in_the_data() -> None:
    loss, n = ConsistencyDistillation(process=PROCESS, teacher=Perceptron(0), stride=0.1), 20_000
    x0 = torch.full((n, 1), 2)
    for t in (0.3, 0.8):
        xt = loss.trajectory(x0, time(t).expand(n), Rng(1)).flatten()
        probs = PROCESS.marginal(torch.eye(V, dtype=torch.float64)[2], time(t)[0])
        assert chi_square(xt.bincount(minlength=V), probs) > FALSE_ALARM
    assert torch.equal(loss.trajectory(x0, time(1e-9).expand(n), Rng(1)), x0)
    near = loss.trajectory(x0, time(0.5).expand(n), Rng(1)) != loss.trajectory(x0, time(0.49).expand(n), Rng(1))
    assert float(near.double().mean()) < 0.02, "one noise for all times"


def test_a_student_that_says_what_the_teacher_says_costs_nothing() -> None:
    """With a stride so small that x_s = x_t; another student pays the divergence of the two laws."""
    teacher, other = Perceptron(0), Perceptron(1)
    loss = ConsistencyDistillation(process=PROCESS, teacher=teacher, stride=1e-7)
    x0 = (Rng(2).uniform((50, LENGTH)) * V).long()
    assert float(loss(teacher, x0, Rng(0)).abs().max()) < 1e-5
    from unmask.losses.consistency_distillation import _NOISE, _TIME
    from unmask.ops import low_discrepancy_uniforms

    t = 1e-7 + (1 - 1e-7) * low_discrepancy_uniforms(Rng(0).fold(_TIME).scalar(), torch.arange(50))
    xt = loss.trajectory(x0, t, Rng(0).fold(_NOISE))
    p, q = (model(xt, t).log_probs().double() for model in (teacher, other))
    torch.testing.assert_close(
        loss(other, x0, Rng(0)), (p.exp() * (p - q)).sum((1, 2)), rtol=1e-4, atol=1e-5, check_dtype=False
    )


def test_rows_and_padding_do_not_matter() -> None:
    class Sitewise(Perceptron):
        def forward(self, xt: Any, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:
            scale = xt.double() + t[:, None]
            return Categorical.from_logits(torch.sin(scale[..., None] * torch.arange(1.0, V + 1)))

    student = Sitewise(0)
    loss = ConsistencyDistillation(process=PROCESS, teacher=Sitewise(1), stride=0.25)
    x0 = (Rng(2).uniform((6, LENGTH)) * V).long()
    together = loss(student, x0, Rng(0).rows(torch.arange(6)))
    for i in range(6):
        alone = loss(student, x0[i : i + 1], Rng(0).rows(torch.tensor([i])))
        torch.testing.assert_close(alone, together[i : i + 1])
    tokens, mask = padded(x0, 2, 1)
    torch.testing.assert_close(loss(student, tokens, Rng(0), attention_mask=mask), loss(student, x0, Rng(0)))


def two_step_error(world: TinyJoint, denoiser: Denoiser) -> float:
    law = world.sampler_law(Ancestral(process=PROCESS).transition, denoiser, PROCESS, time_grid(2))
    return float(total_variation(law.detach(), world.as_states(PROCESS)))


def taught(world: TinyJoint, seed: int) -> Perceptron:
    """A network that says what the exact denoiser says."""
    net, exact = Perceptron(seed), world.denoiser(PROCESS)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for step in range(1500):
        t = Rng(step).fold(3).uniform((256,))
        xt = PROCESS.corrupt(world.sample(256, Rng(step)), t, Rng(step).fold(4))
        optimizer.zero_grad()
        (-(exact(xt, t).log_probs().exp() * net(xt, t).log_probs()).sum((1, 2)).mean()).backward()
        optimizer.step()
        decay.step()
    return net


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_students_two_steps_beat_the_teachers(seed: int) -> None:
    """Three rounds, strides 1/16, 1/8, 1/4, each from the student before."""
    world = TinyJoint.random(V, LENGTH, seed=seed)
    student = taught(world, seed)
    base = two_step_error(world, student)
    for round_ in range(3):
        loss = ConsistencyDistillation(process=PROCESS, teacher=copy.deepcopy(student), stride=2.0**round_ / 16)
        fit(student.parameters(), loss, student, lambda step: world.sample(128, Rng(step)), steps=300, seed=round_)
    print(f"world {seed}: teacher {base:.3f}, student {two_step_error(world, student):.3f}")
    assert two_step_error(world, student) < 0.95 * base


def test_refuses() -> None:
    with pytest.raises(ValueError, match="stride=0"):
        ConsistencyDistillation(process=PROCESS, teacher=Perceptron(0), stride=0.0)
    with pytest.raises(TypeError, match="Uniform"):
        ConsistencyDistillation(process=Masked(vocab_size=4, mask_id=3), teacher=Perceptron(0), stride=0.1)  # type: ignore[arg-type]
