import pytest
import torch
from torch import Tensor, nn

from contracts import BoundContract, time
from helpers import CountingHead, fit, padded
from unmask import Categorical, Denoiser, DiscreteProcess, Interpolating, Loss, Rng, Schedule, time_grid
from unmask.denoisers.masked import MaskedDenoiser
from unmask.denoisers.score import ScoreDenoiser, law_log_scores
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.losses.nelbo import NELBO
from unmask.losses.score_entropy import ScoreEntropy, score_entropy_rate
from unmask.ops import one_hot
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.processes.gidd import GIDD
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform as UniformNoise
from unmask.samplers.ancestral import Ancestral
from unmask.schedules.linear import Linear

MASKED = Masked(vocab_size=3, mask_id=2)


class Lingering(Schedule):
    """Leaves a fifth of the data at t = 1, so that the prior term counts."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - 0.8 * t


class Uniform(Interpolating):
    vocab_size = 2

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def mixing(self, t: Tensor) -> Tensor:
        return torch.full((2,), 0.5, dtype=torch.float64)


UNIFORM = Uniform(Linear())


class RatioTable(nn.Module):
    """f(x_t) enumerated for every noisy state of a world: exact scores as a network would give them."""

    def __init__(self, world: TinyJoint, process: Interpolating, shift: float = 0.0) -> None:
        super().__init__()
        self.world, self.process, self.shift = world, process, shift
        self.data = torch.arange(process.vocab_size) < world.num_values

    def forward(self, tokens: Tensor, t: Tensor, **cond: object) -> Tensor:
        v, length = self.process.vocab_size, tokens.shape[1]
        states = enumerate_states(v, length)
        x0 = torch.eye(v).double().expand(len(t), v, v)
        forward = self.process.marginal(x0, t[:, None].expand(-1, v))  # (b, x0, xt)
        site = torch.arange(length)
        kernel = forward[:, self.world.sequences[:, None, :], states[None]].prod(-1)
        noised = torch.einsum("n,bnk->bk", self.world.probs, kernel)
        swapped = tokens[:, None, None].repeat(1, length, v, 1)
        swapped[:, site, :, site] = torch.arange(v)
        top = noised.gather(1, state_index(swapped.flatten(0, 2), v).reshape(len(tokens), -1))
        ratios = top.reshape(len(tokens), length, v) / noised.gather(1, state_index(tokens, v)[:, None])[..., None]
        base = self.process.marginal((self.data / self.data.sum()).double().expand(len(t), v), t)
        deviation = ratios / base[:, None] * base.gather(1, tokens)[..., None]
        return deviation.clamp(min=1e-300).log() + self.shift

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


class TestScoreEntropy(BoundContract):
    @pytest.fixture(autouse=True, params=[UNIFORM, MASKED], ids=["uniform", "absorbing"])
    def _process(self, request: pytest.FixtureRequest) -> None:
        self.process = request.param

    def make(self) -> tuple[ScoreEntropy, Interpolating]:
        return ScoreEntropy(process=self.process), self.process

    def estimate(self, loss: Loss, process: DiscreteProcess, world: TinyJoint, n: int) -> Tensor:
        """Fewer and smaller batches than usual: the draws are `NELBO`'s, as a test below shows."""
        denoiser, parts = world.denoiser(process), world.sample(3_000, Rng(11)).split(100)
        return torch.stack([loss(denoiser, part, Rng(12).fold(k)).mean() for k, part in enumerate(parts)])


@pytest.mark.parametrize(("process", "mask_id"), [(MASKED, 2), (UNIFORM, None)])
def test_exact_scores_are_read_as_they_are(process: Interpolating, mask_id: int | None) -> None:
    """The enumerated ratios give, draw by draw, what the exact law gives."""
    world = TinyJoint.random(2, 4, seed=2)
    x0, loss = world.sample(100, Rng(0)), ScoreEntropy(process=process)
    scores = ScoreDenoiser(RatioTable(world, process), process=process, mask_id=mask_id)
    torch.testing.assert_close(
        loss(scores, x0, Rng(1)), loss(world.denoiser(process), x0, Rng(1)), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("process", [MASKED, UNIFORM, Uniform(Lingering())])
def test_equals_the_generic_bound_draw_by_draw(process: Interpolating) -> None:
    """For any law, also a wrong one, s = its implied score turns the bound of the jump rates into score entropy."""
    world = TinyJoint.random(2, 4, seed=2)
    x0 = world.sample(200, Rng(0))

    class Wrong(Denoiser):
        def forward(self, xt: Tensor, t: Tensor, **cond: object) -> object:
            return world.denoiser(process)(xt, t).map(lambda log_probs: 0.4 * log_probs)

    mine, generic = (loss(Wrong(), x0, Rng(1)) for loss in (ScoreEntropy(process=process), NELBO(process=process)))
    torch.testing.assert_close(mine, generic, atol=1e-9, rtol=1e-9)
    if isinstance(process, Masked):
        torch.testing.assert_close(mine, MaskedNELBO(process=process)(Wrong(), x0, Rng(1)), atol=1e-9, rtol=1e-9)


class Halves(Interpolating):
    """Noise that reaches some of the states only."""

    vocab_size, schedule = 7, Linear()

    def mixing(self, t: Tensor) -> Tensor:
        weights = torch.tensor([0.0, 1, 0, 2, 0, 0, 1]).double() ** (1 + t[..., None])
        return weights / weights.sum(-1, keepdim=True)


def term_by_term(process: Interpolating, log_s: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """The definition, in (b, l, v): R(y -> x_t) (s - r log s + r (log r - 1)) over y != x_t."""
    everywhere = t[:, None].expand(xt.shape)
    evidence = process.likelihood(xt, torch.zeros_like(everywhere), everywhere)
    r = process.marginal(one_hot(x0, process.vocab_size), t) / evidence.gather(-1, x0[..., None])
    gained = torch.where(r > 0, r * log_s.where(r > 0, 0.0), 0.0)
    entropy = (log_s.exp() - gained + torch.special.xlogy(r, r) - r).scatter(-1, xt[..., None], 0.0)
    rate = (process._rates_into(xt, everywhere) * entropy).sum(-1)
    return torch.where(process._noise_at(xt, everywhere) > 0, rate, 0.0)


NOISES: list[tuple[Interpolating, int | None]] = [
    (Masked(vocab_size=7, mask_id=3), 3),
    (UniformNoise(vocab_size=7), None),
    (UniformNoise(vocab_size=7, schedule=Lingering()), None),
    (GIDD(vocab_size=7, mask_id=2, p_uniform=0.3), 2),
    (Halves(), None),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("process", "mask_id"), NOISES)
def test_sums_for_each_time_equal_the_definition(
    process: Interpolating, mask_id: int | None, dtype: torch.dtype
) -> None:
    """Any network, value and slope; an e^f of f = 100 overflows float32."""
    tt = Rng(1).uniform((40,)).clamp(min=0.05)
    data = torch.tensor([y for y in range(7) if y != mask_id])
    x0 = data[(Rng(2).uniform((40, 5)) * len(data)).long()]
    xt = process.corrupt(x0, tt, Rng(3))
    f = 3 * Rng(4).normal((40, 5, 7))
    f[0, 0], f[1, 0] = 100.0, -100.0
    f = f.to(dtype).requires_grad_(True)
    law = ScoreDenoiser(Given(f), process=process, mask_id=mask_id)(xt, tt)
    everywhere = torch.ones_like(xt, dtype=torch.bool)
    both = (
        score_entropy_rate(process, law, x0, xt, tt, everywhere),
        term_by_term(process, law.log_scores(everywhere).reshape(40, 5, 7), x0, xt, tt),
    )
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(*both, rtol=tolerance, atol=tolerance)
    slopes = [torch.autograd.grad(value[2:].sum(), f, retain_graph=True)[0] for value in both]
    torch.testing.assert_close(*slopes, rtol=tolerance, atol=10 * tolerance)


class Given(nn.Module):
    """f as it is handed over."""

    def __init__(self, f: Tensor) -> None:
        super().__init__()
        self.f = f

    def forward(self, tokens: Tensor, t: Tensor, **cond: object) -> Tensor:
        return self.f

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.mark.parametrize("process", [process for process, _ in NOISES[:3]])
def test_a_law_costs_what_its_scores_cost(process: Interpolating) -> None:
    tt = Rng(1).uniform((40,))
    x0 = (Rng(2).uniform((40, 5)) * 3).long()
    xt, everywhere = process.corrupt(x0, tt, Rng(3)), torch.ones_like(x0, dtype=torch.bool)
    logits = Rng(4).normal((40, 5, 7))
    if isinstance(process, Masked):
        logits[..., 3] = -torch.inf
    law = Categorical.from_logits(logits)
    if isinstance(process, Masked):
        law = law.with_known(xt, xt != 3)
    log_s = law_log_scores(process, law, xt, tt, everywhere).reshape(40, 5, 7)
    torch.testing.assert_close(
        score_entropy_rate(process, law, x0, xt, tt, everywhere), term_by_term(process, log_s, x0, xt, tt)
    )


@pytest.mark.parametrize(("process", "mask_id"), [(MASKED, 2), (UNIFORM, None)])
@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_scores_that_belong_to_no_law_cost_their_surplus(
    process: Interpolating, mask_id: int | None, shift: float
) -> None:
    """E over x_0 of the rate with e^c s in place of the true s exceeds the true one by R s (e^c - 1 - c), y by y."""
    world, t = TinyJoint.random(2, 2, seed=2), 0.6
    states = enumerate_states(process.vocab_size, 2)
    tt, everywhere = time(t).expand(len(states)), torch.ones_like(states, dtype=torch.bool)
    posterior = world.posterior(process, states, tt)

    def expected(net: RatioTable) -> tuple[Tensor, Tensor]:
        law = ScoreDenoiser(net, process=process, mask_id=mask_id)(states, tt)
        rate = torch.zeros(states.shape).double()
        for n, x0 in enumerate(world.sequences):
            one = score_entropy_rate(process, law, x0.expand_as(states), states, tt, everywhere)
            rate += posterior[:, n, None] * torch.where(posterior[:, n, None] > 0, one, 0.0)
        return rate, law.log_scores(everywhere).exp().reshape(*states.shape, -1)

    right, scores = expected(RatioTable(world, process))
    wrong, _ = expected(RatioTable(world, process, shift))
    into = process._rates_into(states, tt[:, None]).scatter(-1, states[..., None], 0.0)
    surplus = (into * scores).sum(-1) * (torch.tensor(shift).double().exp() - 1 - shift)
    assert float(surplus.max()) > 0.1
    torch.testing.assert_close(wrong - right, surplus, atol=1e-9, rtol=1e-9)


def test_the_head_sees_masked_positions_only_and_padding_changes_no_loss() -> None:
    net, process = CountingHead(vocab_size=6), Masked(vocab_size=6, mask_id=5)
    loss, denoiser = ScoreEntropy(process=process), MaskedDenoiser(net, vocab_size=6, mask_id=5)
    x0 = torch.randint(0, 5, (4, 9), generator=torch.Generator().manual_seed(1))
    plain = loss(denoiser, x0, Rng(2))
    assert net.rows_seen == net.masks_seen
    for left, right in [(3, 0), (0, 5), (2, 2)]:
        tokens, mask = padded(x0, left, right)
        torch.testing.assert_close(loss(denoiser, tokens, Rng(2), attention_mask=mask), plain)


@pytest.mark.parametrize(("process", "mask_id"), [(MASKED, 2), (UNIFORM, None)])
def test_no_nan_at_the_ends_of_time(process: Interpolating, mask_id: int | None) -> None:
    net = CountingHead(process.vocab_size)
    x0 = torch.zeros(64, 2, dtype=torch.int64)
    for t in (1e-12, 1 - 1e-12):
        tt = time(t).expand(64)
        xt = process.corrupt(x0, tt, Rng(1))
        xt[0] = process.vocab_size - 1
        law = ScoreDenoiser(net, process=process, mask_id=mask_id)(xt, tt)
        rate = score_entropy_rate(process, law, x0, xt, tt, torch.ones_like(xt, dtype=torch.bool))
        assert bool(rate.isfinite().all())


class StateTable(nn.Module):
    """Learned f for every noisy state of two sites, linear in 1, t and log t."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.rows = vocab_size, nn.Parameter(torch.zeros(vocab_size**2, 2, vocab_size, 3))

    def forward(self, tokens: Tensor, t: Tensor, **cond: object) -> Tensor:
        powers = torch.stack([torch.ones_like(t), t, t.clamp(min=1e-4).log() / 4], -1).to(self.rows.dtype)
        return 10 * (self.rows[state_index(tokens, self.vocab_size)] * powers[:, None, None]).sum(-1)

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


@pytest.mark.slow
@pytest.mark.parametrize(("process", "mask_id"), [(MASKED, 2), (UNIFORM, None)])
def test_training_on_it_learns_the_world(process: Interpolating, mask_id: int | None) -> None:
    """Scores trained from nothing, converted to a law, sampled: within TV 0.05 of the data, from 0.3 before."""
    world = TinyJoint(torch.tensor([[0.5, 0.1], [0.05, 0.35]]))
    net = StateTable(process.vocab_size)
    denoiser = ScoreDenoiser(net, process=process, mask_id=mask_id)

    def distance() -> float:
        transition = Ancestral(process=process).transition
        with torch.no_grad():
            law = world.sampler_law(transition, denoiser, process, time_grid(32))
        return total_variation(law, world.as_states(process))

    before = distance()
    fit(
        net.parameters(),
        ScoreEntropy(process=process),
        denoiser,
        lambda step: world.sample(128, Rng(3).fold(step)),
        steps=500,
        seed=0,
    )
    assert before > 0.25
    assert distance() < 0.05
