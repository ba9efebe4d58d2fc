import pytest
import torch
from torch import Tensor

from contracts import time, unit_interval_quadrature
from helpers import CountingHead, padded
from planned_world import joint_with_noise
from unmask import Categorical, Denoiser, Rng
from unmask.denoisers.masked import MaskedDenoiser
from unmask.denoisers.planned import GivenNoise, Planner
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.losses.planned_denoising import GivenNoiseLoss, PlannerLoss
from unmask.oracles.tiny_joint import TinyJoint, state_index
from unmask.process import Interpolating
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform

WORLD, PROCESS = TinyJoint.random(2, 3, seed=4), Uniform(vocab_size=2)


def terms(world: TinyJoint, process: Interpolating, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p(x_0, z, x_t), the patterns z, -log p(z | x_t) and -log p(x_0 | x_t, z) of every (x_0, z, x_t), exact model."""
    joint, patterns, states = joint_with_noise(world, process, t)
    times, denoiser = time(t).expand(len(states)), world.denoiser(process)
    reached = world.noised(process, t) > 0
    some = states[reached]
    planned = Planner(denoiser, process)(some, times[reached]).log_probs()  # (k, l, 2)
    values = GivenNoise(denoiser, process)(some, times[reached]).log_probs()  # (k, l, v)
    which = -torch.where(patterns[:, None], planned[..., 1], planned[..., 0])  # (2^l, k, l)
    pick = world.sequences[:, None, :, None].expand(-1, len(some), -1, 1)
    value = -values.expand(len(world.sequences), -1, -1, -1).gather(3, pick).squeeze(3)  # (n, k, l)
    weighed = torch.where(patterns[None, :, None], value[:, None], 0.0)
    which = torch.where(joint[..., reached, None] > 0, which[None].expand_as(weighed), 0.0)
    weighed = torch.where(joint[..., reached, None] > 0, weighed, 0.0)
    return joint[..., reached], patterns, which, weighed


def expected(joint: Tensor, values: Tensor) -> float:
    return float((joint[..., None] * values).sum())


@pytest.mark.parametrize("which", [PlannerLoss, GivenNoiseLoss])
def test_the_loss_is_its_expectation_by_enumeration(which: type) -> None:
    exact = 0.0
    for t, weight in unit_interval_quadrature(30):
        joint, _, planned, values = terms(WORLD, PROCESS, t)
        exact += weight * expected(joint, planned if which is PlannerLoss else values)
    model = (Planner if which is PlannerLoss else GivenNoise)(WORLD.denoiser(PROCESS), PROCESS)
    x0 = WORLD.sample(20_000, Rng(11))
    means = torch.stack(
        [which(process=PROCESS)(model, part, Rng(12).fold(k)).mean() for k, part in enumerate(x0.split(200))]
    )
    assert abs(float(means.mean()) - exact) < 5.3 * float(means.std()) / 10


def test_with_the_papers_weight_the_sum_is_a_bound_and_without_it_none() -> None:
    """Weighted by -alpha' / (1 - alpha), the two cross-entropies of the exact model add up to more than the entropy by
    at least E of -w (1 - P) log(1 - P); unweighted they undercut it for masks. With masks the weighted sum is tight."""
    for process, tight in [(PROCESS, False), (Masked(vocab_size=3, mask_id=2), True)]:
        weighted = plain = gap = 0.0
        for t, weight in unit_interval_quadrature(25):
            joint, _, planned, values = terms(WORLD, process, t)
            hazard = float(-process.schedule.alpha_dot(time(t)[0]) / process.schedule.noise(time(t)[0]))
            clean = Planner(WORLD.denoiser(process), process)
            both = expected(joint, planned + values)
            weighted, plain = weighted + weight * hazard * both, plain + weight * both
            states = joint_with_noise(WORLD, process, t)[2]
            states = states[WORLD.noised(process, t) > 0]
            log_clean = clean(states, time(t).expand(len(states))).log_probs()[..., 0]
            slack = -torch.where(log_clean > -torch.inf, log_clean.exp() * log_clean, 0.0).sum(1)
            gap += weight * hazard * float((joint.sum((0, 1)) * slack).sum())
        if tight:
            assert weighted == pytest.approx(WORLD.entropy, abs=1e-6)
            assert plain < 0.8 * WORLD.entropy
        else:
            assert weighted > WORLD.entropy + gap
            assert gap > 0.05
    assert not PlannerLoss.bound
    assert not GivenNoiseLoss.bound


def test_each_part_bounds_the_jumps_integrand() -> None:
    """-z log P - (1 - z) log(1 - P) - z log p  >=  P - z - z log(P p) for any numbers."""
    grid = torch.linspace(0.001, 0.999, 60).double()
    planned, value = torch.meshgrid(grid, grid, indexing="ij")
    for z in (0.0, 1.0):
        entropy = -z * planned.log() - (1 - z) * torch.log1p(-planned) - z * value.log()
        assert bool((entropy >= planned - z - z * (planned * value).log()).all())


def test_with_masks_the_second_part_is_the_masked_bound_unweighted() -> None:
    process = Masked(vocab_size=12, mask_id=11)
    denoiser = MaskedDenoiser(CountingHead(vocab_size=12), vocab_size=12, mask_id=11)
    x0 = (Rng(1).uniform((600, 4)) * 11).long()
    plain = GivenNoiseLoss(process=process)(denoiser, x0, Rng(2)).mean()
    # E_t[(1 - alpha) nats] = nats / 2 a site, where the bound weighs by 1 / t: a site's nats do not depend on x_t here
    bound = MaskedNELBO(process=process)(denoiser, x0, Rng(2)).mean()
    assert float(plain / bound) == pytest.approx(0.5, rel=0.05)


class Table(Denoiser):
    """Free logits for every x_t."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(8, 3, classes).double())

    def forward(self, xt, t, **cond):  # type: ignore[no-untyped-def]
        return Categorical.from_logits(self.logits[state_index(xt, 2)])


@pytest.mark.parametrize("which", [PlannerLoss, GivenNoiseLoss])
def test_the_average_posterior_is_the_minimum(which: type) -> None:
    """A table that is not told t: the slope of the convex loss vanishes at the posterior given x_t alone, and nowhere
    near the uniform one."""
    wanted = torch.zeros(8, 3, 2).double()
    for t, weight in unit_interval_quadrature(20):
        joint, patterns, _ = joint_with_noise(WORLD, PROCESS, t)
        for site in range(3):
            at = patterns[:, site]
            noisy = joint[:, at].sum(1)
            planned = [joint[:, ~at].sum((0, 1)), noisy.sum(0)]
            values = [noisy[WORLD.sequences[:, site] == v].sum(0) for v in (0, 1)]
            wanted[:, site] += weight * torch.stack(planned if which is PlannerLoss else values, -1)
    model, x0 = Table(2), WORLD.sample(40_000, Rng(7))

    def worst(logits: Tensor) -> float:
        model.logits.data = logits
        slopes = []
        for k, part in enumerate(x0.split(400)):
            total = which(process=PROCESS)(model, part, Rng(8).fold(k)).mean()
            slopes.append(torch.autograd.grad(total, model.logits)[0])
        every = torch.stack(slopes)
        return float((every.mean(0) / every.std(0) * 10).abs().max())

    assert worst(wanted.log()) < 5.3
    assert worst(0 * wanted) > 20


def test_rows_and_padding() -> None:
    process = Masked(vocab_size=12, mask_id=11)
    head = CountingHead(vocab_size=12)
    denoiser = MaskedDenoiser(head, vocab_size=12, mask_id=11)
    x0, rows = (Rng(1).uniform((16, 6)) * 11).long(), torch.arange(40, 56)
    for loss in (GivenNoiseLoss(process=process), PlannerLoss(process=process)):
        model = denoiser if isinstance(loss, GivenNoiseLoss) else Planner(denoiser, process)
        together = loss(model, x0, Rng(3).rows(rows))
        apart = torch.cat([loss(model, x0[i : i + 1], Rng(3).rows(rows[i : i + 1])) for i in range(16)])
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=0)
        for left, right in [(3, 0), (1, 2)]:
            tokens, mask = padded(x0, left, right)
            torch.testing.assert_close(
                loss(model, tokens, Rng(3).rows(rows), attention_mask=mask), together, rtol=1e-5, atol=0
            )
    head.rows_seen = head.masks_seen = 0
    GivenNoiseLoss(process=process)(denoiser, x0, Rng(3))
    assert head.rows_seen == head.masks_seen < x0.numel(), "the head is evaluated at noise only"


def test_refuses() -> None:
    with pytest.raises(TypeError, match="PlannerLoss"):
        PlannerLoss(process=object())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="GivenNoiseLoss"):
        GivenNoiseLoss(process=object())  # type: ignore[arg-type]
