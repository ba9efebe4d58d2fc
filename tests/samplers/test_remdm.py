import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from contracts import FALSE_ALARM, SamplerContract
from helpers import CountingHead
from order_worlds import Lookup
from unmask import Rng, TextModel, sample, time_grid, trajectory
from unmask.denoisers.masked import MaskedDenoiser
from unmask.metrics.judge import ShippedJudge
from unmask.metrics.quality import sample_quality
from unmask.oracles.statistics import chi_square, total_variation
from unmask.oracles.tiny_joint import TableDenoiser, TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.remdm import Decoded, ReMDM, Window, cap, most, rescale
from unmask.sampling import Without
from unmask.schedules.cosine import Cosine

PROCESS = Masked(vocab_size=4, mask_id=3)
ONES = torch.ones(1).double()
HELD = Window(start=0.7, end=0.2, alpha=0.6)


class Remasked(SamplerContract):
    def model(self) -> tuple[ReMDM, Masked, Lookup]:
        sampler, process = self.make()
        return sampler, process, Lookup(self.world(), 3)  # type: ignore[return-value]


class TestCap(Remasked):
    def make(self) -> tuple[ReMDM, Masked]:
        return ReMDM(process=PROCESS, sigma=cap(0.3)), PROCESS


class TestLoopWithTopP(Remasked):
    def make(self) -> tuple[ReMDM, Masked]:
        return ReMDM(process=PROCESS, sigma=most, window=HELD, top_p=0.8, temperature=0.9), PROCESS


class TestByConfidence(Remasked):
    def make(self) -> tuple[ReMDM, Masked]:
        return ReMDM(process=PROCESS, sigma=rescale(0.9), by_confidence=True), PROCESS

    def test_empirical_law_is_the_recursion_law(self) -> None:
        """The kernel depends on the decoding, too: the recursion over canvases with what is remembered of it."""
        world, n = TinyJoint.random(3, 2, seed=5), 60_000
        sampler, process = self.make()
        exact, share = decoded_law(sampler, world, 3)
        assert share == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-12), "the share of masks is that of the process"
        drawn = sample(sampler, Lookup(world, 2), (n, 2), num_steps=3, rng=Rng(1))
        assert chi_square(state_index(drawn, 4).bincount(minlength=16), exact) > FALSE_ALARM
        equal, _ = decoded_law(ReMDM(process=process, sigma=rescale(0.9)), world, 3)
        assert total_variation(exact, equal) > 1e-4, "confidence makes no difference"


def decoded_law(sampler: ReMDM, world: TinyJoint, num_steps: int) -> tuple[Tensor, list[float]]:
    """The law of the last canvas, and the share of masks after each step."""
    process, denoiser, length = sampler.process, Lookup(world, world.length), world.length
    law = {((process.mask_id,) * length, (1.0,) * length): 1.0}
    every, shares = enumerate_states(process.vocab_size, length), []
    for t, s in zip(time_grid(num_steps)[:-1], time_grid(num_steps)[1:], strict=True):
        after: dict[tuple[tuple[int, ...], tuple[float, ...]], float] = defaultdict(float)
        for (x, psi), mass in law.items():
            canvas = torch.tensor([x])
            kernel = sampler._kernel(denoiser, canvas, t[None], s[None], torch.tensor([psi]).double(), None)
            site = torch.arange(length)
            chances = kernel.log_probs()[0].double().exp()[site, every].prod(1)
            given = denoiser(canvas, t[None]).log_probs()[0].exp()
            for y, chance in zip(every.tolist(), chances.tolist(), strict=True):
                if chance > 0:
                    new = [float(given[i, y[i]]) if x[i] == process.mask_id != y[i] else psi[i] for i in range(length)]
                    after[tuple(y), tuple(new)] += mass * chance
        law = dict(after)
        shares.append(sum(mass * x.count(process.mask_id) / length for (x, _), mass in law.items()))
    out = torch.zeros(process.vocab_size**length).double()
    for (x, _), mass in law.items():
        out[state_index(torch.tensor([x]), process.vocab_size)] += mass
    return out, shares


@pytest.mark.parametrize("rule", [cap(0.2), rescale(0.5), most])
@pytest.mark.parametrize("window", [None, HELD])
@pytest.mark.parametrize("schedule", [PROCESS.schedule, Cosine()])
def test_every_rule_keeps_the_marginals(rule: object, window: Window | None, schedule: Cosine) -> None:
    """After every step each site is masked with probability 1 - alpha, in the window the window's; the exact law of
    the canvases by recursion."""
    process = Masked(vocab_size=4, mask_id=3, schedule=schedule)
    world, sampler = TinyJoint.random(3, 3, seed=5), ReMDM(process=process, sigma=rule, window=window)  # type: ignore[arg-type]
    masked, denoiser = enumerate_states(4, 3) == 3, Lookup(world, 3)
    taken, times = 0.0, time_grid(7)
    for last in (2, 4, 7):
        law = world.sampler_law(sampler.transition, denoiser, process, times[: last + 1])
        s = times[last] if window is None else window.level(process, times[last])
        share = (law[:, None] * masked).sum(0)
        torch.testing.assert_close(share, process.schedule.noise(s).expand(3), atol=1e-12, rtol=0)
        kernel = sampler.transition(
            world.denoiser(process), torch.zeros(1, 3).long(), *times[last - 1 : last + 1, None]
        )
        taken += float(kernel.sigma.sum())
    assert taken > 0.2, "nothing was re-masked"


def test_no_re_masking_is_ancestral_sampling_to_the_bit() -> None:
    denoiser = MaskedDenoiser(CountingHead(vocab_size=12), vocab_size=12, mask_id=11)
    for schedule in (PROCESS.schedule, Cosine()):
        process = Masked(vocab_size=12, mask_id=11, schedule=schedule)
        for settings in ({}, {"temperature": 0.7, "top_p": 0.8, "top_k": 5}):
            plain, none = Ancestral(process=process, **settings), ReMDM(process=process, sigma=cap(0.0), **settings)  # type: ignore[arg-type]
            runs = [
                list(trajectory(sampler, denoiser, process.prior((4, 12), Rng(0)), time_grid(9), rng=Rng(1)))
                for sampler in (plain, none)
            ]
            for one, two in zip(*runs, strict=True):
                assert torch.equal(one.canvas, two.canvas)
                assert one.network_calls == two.network_calls
                assert torch.equal(one.commit_log_prob.nan_to_num(), two.commit_log_prob.nan_to_num())


def test_the_loop_takes_back_as_many_as_it_reveals_and_says_which() -> None:
    process, n = PROCESS, 4000
    sampler = ReMDM(process=process, sigma=rescale(1.0), window=HELD)
    world = TinyJoint.random(3, 3, seed=5)
    before = process.prior((n, 3), Rng(0))
    for event in trajectory(sampler, Lookup(world, 3), before, time_grid(20), rng=Rng(2)):
        assert torch.equal(event.remasked, (event.canvas == 3) & (before != 3))
        assert torch.equal(event.newly_set, (event.canvas != 3) & (before == 3))
        inside = event.t <= 0.7 + 1e-9 and event.s >= 0.2 - 1e-9
        assert bool(event.remasked.any()) == inside
        if inside:
            moved = event.newly_set.sum() - event.remasked.sum()
            assert abs(float(moved)) < 5.3 * float(event.newly_set.sum() + event.remasked.sum()) ** 0.5
        before = event.canvas


def test_tokens_decoded_with_doubt_are_taken_back_more_often() -> None:
    process = Masked(vocab_size=4, mask_id=3)
    sampler = ReMDM(process=process, sigma=rescale(0.25), by_confidence=True)
    canvas, n = torch.tensor([[0, 1, 3, 2]]), 60_000
    psi = torch.tensor([[0.9, 0.1, 0.5, 0.5]]).double()
    t, s = torch.tensor([0.5]).double(), torch.tensor([0.4]).double()
    kernel = sampler._kernel(Lookup(TinyJoint.random(3, 4, seed=1), 4), canvas, t, s, psi, None)
    weight = torch.exp(-psi[0, [0, 1, 3]])
    torch.testing.assert_close(kernel.sigma[0, [0, 1, 3]], 0.25 * 0.8 * 3 * weight / weight.sum())
    assert float(kernel.sigma[0, 2]) == 0
    denoiser = Lookup(TinyJoint.random(3, 4, seed=1), 4)
    carry = Decoded(confidence=psi.expand(n, -1))
    x, after = sampler.step(denoiser, canvas.expand(n, -1), t.expand(n), s.expand(n), carry, Rng(3))
    share = (x == 3)[:, [0, 1, 3]].double().mean(0)
    expected = kernel.sigma[0, [0, 1, 3]]
    assert bool(((share - expected).abs() < 5.3 * (expected / n).sqrt()).all())
    assert after.confidence is not None
    kept = after.confidence[:, [0, 1, 3]]
    torch.testing.assert_close(kept, psi[:, [0, 1, 3]].expand(n, -1))


def uncertain(world: TinyJoint, amount: float) -> TableDenoiser:
    """The exact conditionals, mixed with uniform ones the more so, the less of the canvas is decoded."""
    states = enumerate_states(3, world.length)
    exact, masked = Lookup(world, world.length).table.exp(), states == 2
    blur = amount * masked.double().mean(1)[:, None] ** 2 * masked
    table = (1 - blur[..., None]) * exact + blur[..., None] * torch.tensor([0.5, 0.5, 0.0]).double()
    return TableDenoiser(lambda xt, t: table[state_index(xt, 3)])


@pytest.mark.parametrize("seed", range(3))
def test_more_steps_go_on_helping_a_model_that_errs_where_little_is_decoded(seed: int) -> None:
    world, process = TinyJoint.random(2, 4, seed=seed), Masked(vocab_size=3, mask_id=2)
    denoiser, data = uncertain(world, 0.8), world.as_states(process)

    def error(sampler: Ancestral | ReMDM, num_steps: int) -> float:
        return total_variation(world.sampler_law(sampler.transition, denoiser, process, time_grid(num_steps)), data)

    plain, capped = Ancestral(process=process), ReMDM(process=process, sigma=cap(0.1))
    short, long = error(plain, 16), error(plain, 64)
    assert error(capped, 16) < short, "at four steps a token"
    assert error(capped, 64) < 0.85 * long
    assert long > 0.8 * short, "ancestral sampling gains little from more steps than tokens"


@pytest.mark.slow
def test_on_the_packaged_model_it_goes_on_where_ancestral_steps_stop() -> None:
    """256 steps of 128 tokens, two temperatures below 1: perplexity under the twin, pooled over both in logarithms."""
    model, judge = TextModel.from_pretrained(), ShippedJudge()
    process, tokenizer = model.checkpoint.process, model.tokenizer
    denoiser = Without(model.denoiser, [tokenizer.pad_id, tokenizer.eos_id])
    assert isinstance(process, Masked)
    gains, errors = [], []
    for temperature in (0.6, 0.8):
        loop = ReMDM(process=process, sigma=cap(0.05), window=Window(), temperature=temperature)
        for sampler in (Ancestral(process=process, temperature=temperature), loop):
            drawn = sample(sampler, denoiser, (192, 128), num_steps=256, rng=Rng(11))
            found = sample_quality([tokenizer.decode(x) for x in drawn], tokenizer=tokenizer, judge=judge)
            print(temperature, type(sampler).__name__, found.perplexity, found.perplexity_se, found.unigram_entropy)
            assert found.perplexity is not None
            assert found.perplexity_se is not None
            gains.append(math.log(found.perplexity) * (-1 if sampler is loop else 1))
            errors.append(found.perplexity_se / found.perplexity)
    print("logarithm of the ratio", sum(gains) / 2, "+-", math.hypot(*errors) / 2)
    assert sum(gains) > 3 * math.hypot(*errors)


def test_the_largest_sigma_rounds_to_no_probability_above_one() -> None:
    world, process = TinyJoint.random(2, 2, seed=0), Masked(vocab_size=3, mask_id=2)
    sampler, denoiser = ReMDM(process=process, sigma=most), Lookup(world, 2)
    assert not bool((sample(sampler, denoiser, (3, 2), num_steps=1, rng=Rng(0)) == 2).any()), "one step to the end"
    for t, s in zip(time_grid(80)[:-1], time_grid(80)[1:], strict=True):
        kernel = sampler.transition(denoiser, torch.tensor([[2, 0]]), t[None], s[None])
        assert not bool(kernel.log_probs().isnan().any())


def test_refuses() -> None:
    with pytest.raises(ValueError, match="eta"):
        cap(1.5)
    with pytest.raises(ValueError, match="Window"):
        Window(start=0.2, end=0.5)
    with pytest.raises(ValueError, match="top_p"):
        ReMDM(process=PROCESS, sigma=most, top_p=0.0)
    with pytest.raises(TypeError, match="Masked"):
        ReMDM(process=Uniform(vocab_size=3), sigma=most)  # type: ignore[arg-type]
    greedy = ReMDM(process=PROCESS, sigma=lambda process, t, s: torch.ones_like(t))
    with pytest.raises(ValueError, match="most"):
        sample(greedy, Lookup(TinyJoint.random(3, 2, seed=0), 2), (2, 2), num_steps=4, rng=Rng(0))
    unequal, denoiser = (
        ReMDM(process=PROCESS, sigma=most, by_confidence=True),
        Lookup(TinyJoint.random(3, 2, seed=0), 2),
    )
    with pytest.raises(ValueError, match="by_confidence"):
        unequal.transition(denoiser, torch.tensor([[3, 3]]), ONES, 0.5 * ONES)
