from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import FALSE_ALARM, PaddedChain, SamplerContract
from helpers import CountingHead
from order_worlds import Lookup
from path_worlds import CODE_PROCESS, all_masks, code, output_law, uncertain
from unmask import Categorical, Denoiser, Rng, sample, time_grid, trajectory
from unmask.denoisers.categorical import CategoricalDenoiser
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.path_planning import PathPlannerLoss
from unmask.oracles.statistics import chi_square, kl_divergence, total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers import path_planning
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.path_planning import (
    Judge,
    PathPlanning,
    external,
    hidden_probability,
    learned,
    own_probability,
)
from unmask.samplers.unmask import Candidates, Order, Unmask
from unmask.select.entropy import entropy
from unmask.select.left_to_right import left_to_right
from unmask.select.margin import margin
from unmask.select.random import random_order
from unmask.select.top_probability import top_probability

PROCESS = Masked(vocab_size=4, mask_id=3)


class Doubtful(PaddedChain):
    """The contract's chain without carry-over: it doubts every token that it sees."""

    def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
        seen = super().forward(torch.full_like(xt, self.vocab_size - 1), t, **cond).log_probs()
        mask = cond.get("attention_mask")
        real = torch.ones_like(xt, dtype=torch.bool) if mask is None else mask
        sums = (torch.nn.functional.one_hot(xt, self.vocab_size) * real[..., None]).cumsum(1)
        return Categorical.from_logits(seen + 0.3 * sums)


class Halves(Denoiser):
    """A planner whose doubts depend on the token, its place and its left neighbour."""

    def forward(self, xt: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Categorical:  # type: ignore[override]
        real = torch.ones_like(xt, dtype=torch.bool) if attention_mask is None else attention_mask
        doubt = torch.sin(1.0 + xt.double() * 2 + real.cumsum(1))
        return Categorical.from_logits(torch.stack([0 * doubt, doubt], -1))


class Planned(SamplerContract):
    num_steps = 4
    judge: Judge
    eta = 1.0

    def make(self) -> tuple[PathPlanning, Masked]:
        return PathPlanning(process=PROCESS, judge=type(self).judge, eta=self.eta), PROCESS

    def model(self) -> tuple[PathPlanning, Masked, Denoiser]:  # type: ignore[override]
        return *self.make(), Lookup(self.world(), 3)


class TestHidden(Planned):
    judge = staticmethod(hidden_probability)

    def test_empirical_law_is_the_recursion_law(self) -> None:
        sampler, _, denoiser = self.model()
        exact = output_law(sampler, denoiser, 3, time_grid(self.num_steps))
        drawn = sample(sampler, denoiser, (20_000, 3), num_steps=self.num_steps, rng=Rng(1))
        assert isinstance(drawn, Tensor)
        assert chi_square(state_index(drawn, 4).bincount(minlength=64), exact) > FALSE_ALARM


class TestOwn(Planned):
    judge, eta = staticmethod(own_probability), 2.0


class TestLearned(Planned):
    judge, eta = staticmethod(learned(Halves())), 0.5


class TestExternal(Planned):
    judge = staticmethod(external(Doubtful(4), t=0.1))


def to_level(found: Candidates) -> Tensor:
    """As many reveals as leave floor(N (1 - alpha_s)) masks of the N = 9 free sites."""
    left = torch.floor(9 * found.process.schedule.noise(found.s) + 1e-9).long()
    return found.sizes - left


@pytest.mark.parametrize(
    "order", [top_probability(), top_probability(noise=0.7), random_order, margin(), entropy(), left_to_right]
)
def test_without_re_masking_it_is_plain_unmasking_with_that_order_to_the_bit(order: Order) -> None:
    """Canvas by canvas, calls and commits too, for each order, alone and behind three fixed tokens and a fixed mask."""
    denoiser = MaskedDenoiser(CountingHead(vocab_size=12), vocab_size=12, mask_id=11)
    process = Masked(vocab_size=12, mask_id=11)
    plain = Unmask(process=process, order=order, quota=to_level)
    planning = PathPlanning(process=process, order=order, eta=0.0, judge=_unwanted)
    whole = process.prior((6, 9), Rng(0))
    fixed = torch.tensor([[2, 5, 7, 11]]).expand(6, -1)
    for canvas in (whole, torch.cat([fixed, whole], 1)):
        editable = (torch.arange(canvas.shape[1]) >= canvas.shape[1] - 9).expand(canvas.shape)
        runs = [
            list(trajectory(sampler, denoiser, canvas, time_grid(13), rng=Rng(4), editable=editable))
            for sampler in (plain, planning)
        ]
        for one, two in zip(*runs, strict=True):
            assert torch.equal(one.canvas, two.canvas)  # type: ignore[arg-type]
            assert one.network_calls == two.network_calls
            assert torch.equal(one.commit_log_prob.nan_to_num(), two.commit_log_prob.nan_to_num())  # type: ignore[union-attr]
            assert not bool(two.remasked.any())  # type: ignore[union-attr]


def test_the_model_is_told_the_time_of_the_canvas_that_it_sees() -> None:
    """The share of its masks, with one more where a token is hidden to be judged; padding does not count."""
    shares = []

    class Clocked(PaddedChain):
        def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
            real = cond["attention_mask"]
            share = ((xt == 3) & real).sum(1) / real.sum(1)
            torch.testing.assert_close(t, share.double(), atol=1e-6, rtol=0)
            shares.append(share)
            return super().forward(xt, t, **cond)

    real = (torch.arange(7) < torch.tensor([[7], [5]])).repeat(3, 1)
    canvas = torch.full((6, 7), 3).masked_fill(~real, 0)
    list(trajectory(PathPlanning(process=PROCESS), Clocked(4), canvas, time_grid(5), rng=Rng(0), attention_mask=real))
    assert len(shares) > 5


def _unwanted(draft: Any) -> Tensor:
    raise AssertionError("nobody is to be judged at eta = 0")


def test_without_re_masking_one_site_at_a_time_is_exact_and_with_it_not() -> None:
    world = TinyJoint.random(3, 3, seed=5)
    denoiser, data = Lookup(world, 3), world.as_states(PROCESS)
    gaps = {
        eta: total_variation(output_law(PathPlanning(process=PROCESS, eta=eta), denoiser, 3, time_grid(6)), data)
        for eta in (0.0, 1.0)
    }
    assert gaps[0.0] < 1e-12
    assert gaps[1.0] > 0.05


def test_the_number_of_masks_follows_the_schedule_and_swaps_are_told() -> None:
    world = TinyJoint.random(3, 6, seed=2)
    sampler, before, swapped = PathPlanning(process=PROCESS, eta=3.0), PROCESS.prior((64, 6), Rng(0)), 0
    for event in trajectory(sampler, Lookup(world, 6), before, time_grid(10), rng=Rng(1)):
        masks = event.canvas == 3  # type: ignore[operator]
        assert bool((masks.sum(1) == int(6 * event.s + 1e-9)).all())
        assert torch.equal(event.remasked, masks & (before != 3))  # type: ignore[arg-type]
        assert torch.equal(event.newly_set, ~masks & (before == 3))  # type: ignore[arg-type]
        swapped += int(event.remasked.sum())  # type: ignore[union-attr]
        before = event.canvas  # type: ignore[assignment]
    assert swapped > 64


def test_a_larger_eta_re_masks_more() -> None:
    world, shares = TinyJoint.random(3, 5, seed=3), []
    for eta in (0.25, 1.0, 4.0):
        sampler = PathPlanning(process=PROCESS, eta=eta)
        events = trajectory(sampler, Lookup(world, 5), PROCESS.prior((400, 5), Rng(0)), time_grid(10), rng=Rng(1))
        shares.append(sum(int(event.remasked.sum()) for event in events) / 400)  # type: ignore[union-attr]
    assert shares[0] < 0.7 * shares[1]
    assert shares[1] < 0.9 * shares[2]


def test_many_tokens_are_judged_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    world, sampler = TinyJoint.random(3, 5, seed=3), PathPlanning(process=PROCESS)

    def run() -> list[Any]:
        return list(trajectory(sampler, Lookup(world, 5), PROCESS.prior((9, 5), Rng(0)), time_grid(8), rng=Rng(1)))

    whole = run()
    monkeypatch.setattr(path_planning, "_TOKENS", 20)
    parts = run()
    assert all(torch.equal(one.canvas, two.canvas) for one, two in zip(whole, parts, strict=True))
    assert parts[-1].network_calls > 2 * whole[-1].network_calls


def test_carry_over_is_never_doubted_by_itself_but_when_hidden() -> None:
    network = CountingHead(vocab_size=12)
    sure, doubtful = (
        MaskedDenoiser(network, vocab_size=12, mask_id=11),
        CategoricalDenoiser(network, vocab_size=12, forbidden=11),
    )
    process = Masked(vocab_size=12, mask_id=11)

    def taken(judge: Judge, denoiser: Denoiser) -> int:
        sampler = PathPlanning(process=process, judge=judge)
        events = trajectory(sampler, denoiser, process.prior((8, 9), Rng(0)), time_grid(12), rng=Rng(4))
        return sum(int(event.remasked.sum()) for event in events)  # type: ignore[union-attr]

    assert taken(own_probability, sure) == 0
    assert taken(own_probability, doubtful) > 0
    assert taken(hidden_probability, sure) > 0


@pytest.mark.parametrize("seed", range(4))
def test_an_uncertain_denoiser_gains_where_few_sequences_are_right(seed: int) -> None:
    """Five words of five bits: the exact KL to the data falls by a third and more against ancestral sampling of as
    many steps, and the mass off the words to a third at most."""
    world = code(seed)
    denoiser, data, times = uncertain(world, 0.5), world.as_states(CODE_PROCESS), time_grid(10)
    plain = world.sampler_law(Ancestral(process=CODE_PROCESS).transition, denoiser, CODE_PROCESS, times)
    planned = output_law(PathPlanning(process=CODE_PROCESS), denoiser, 5, times)
    off = data < 0.01
    loss = [kl_divergence(data, law) for law in (plain, planned)]
    wrong = [float(law[off].sum()) for law in (plain, planned)]
    print(f"seed {seed}: KL {loss[0]:.3f} -> {loss[1]:.3f} nats, off the words {wrong[0]:.3f} -> {wrong[1]:.3f}")
    assert loss[1] < 0.85 * loss[0]
    assert wrong[1] < 0.4 * wrong[0]


@pytest.mark.parametrize("seed", range(3))
def test_where_all_sequences_occur_it_sharpens(seed: int) -> None:
    """What a planner prefers is not what is likely: more steps raise the likelihood of samples above that of the data,
    while the law moves away from it."""
    world = TinyJoint.random(2, 4, seed=seed)
    denoiser, data = uncertain(world, 0.5), world.as_states(CODE_PROCESS)
    nats = -data.where(data > 0, 1.0).log()
    laws = [output_law(PathPlanning(process=CODE_PROCESS), denoiser, 4, time_grid(n)) for n in (4, 8, 32)]
    plain = world.sampler_law(Ancestral(process=CODE_PROCESS).transition, denoiser, CODE_PROCESS, time_grid(32))
    assert float((laws[2] * nats).sum()) < world.entropy < float((plain * nats).sum())
    assert total_variation(laws[2], data) > 2 * total_variation(plain, data)
    assert kl_divergence(data, laws[0]) < kl_divergence(data, laws[1]) < kl_divergence(data, laws[2])


def spoilt(world: TinyJoint) -> Tensor:
    """The law of the data with one bit of every sequence turned, the site uniform; over the canvases."""
    out = torch.zeros(3**world.length).double()
    for site in range(world.length):
        turned = world.sequences.clone()
        turned[:, site] = 1 - turned[:, site]
        out = out.index_add(0, state_index(turned, 3), world.probs / world.length)
    return out


@pytest.mark.parametrize("seed", range(3))
def test_wrong_tokens_on_a_finished_canvas_are_found_and_mended(seed: int) -> None:
    """One bit of each word is turned; from t = 0.4 down, two of five sites are masked and decided again. Ancestral
    sampling changes nothing, and re-masking at random mends far less."""
    world = code(seed, slip=1e-3)
    exact = Lookup(world, 5)
    data, start, times = world.as_states(CODE_PROCESS), spoilt(world), 0.4 * time_grid(4)
    off = data < 0.01
    planned = output_law(PathPlanning(process=CODE_PROCESS), exact, 5, times, start)
    before, after = float(start[off].sum()), float(planned[off].sum())
    blind = output_law(PathPlanning(process=CODE_PROCESS, judge=_places), exact, 5, times, start)
    print(f"seed {seed}: off the words {before:.3f}, planned {after:.3f}, blind {float(blind[off].sum()):.3f}")
    assert after < 0.1 * before
    assert after < 0.5 * float(blind[off].sum())
    unmasked = output_law(PathPlanning(process=CODE_PROCESS, eta=0.0), exact, 5, times, start)
    torch.testing.assert_close(unmasked, start)


def _places(draft: Any) -> Tensor:
    """Doubts that know nothing: of some places more than of others."""
    place = torch.arange(draft.x.shape[1]).expand(draft.x.shape)[draft.decoded]
    return -1.0 - torch.sin(place.double() * 2)


def test_external_and_learned_planners_are_asked_about_the_completed_canvas() -> None:
    """They see no mask, and what they see at a mask is the value that is set there if it is revealed."""
    seen: list[Tensor] = []

    class Watching(Halves):
        def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
            seen.append(xt)
            return super().forward(xt, t, **cond)

    world, t = TinyJoint.random(3, 5, seed=3), torch.full((64,), 0.6).double()
    x = torch.tensor([[0, 3, 1, 3, 3]]).expand(64, -1)
    for judge in (learned(Watching()), external(Watching())):
        seen.clear()
        sampler = PathPlanning(process=PROCESS, judge=judge)
        after, _ = sampler.step(Lookup(world, 5), x, t, 0.7 * t, sampler.init(x), Rng(0))
        assert len(seen) == 1
        assert bool((seen[0] < 3).all())
        assert torch.equal(seen[0][x != 3], x[x != 3])
        kept = (x == 3) & (after != 3)
        assert bool(kept.any())
        assert torch.equal(after[kept], seen[0][kept])


@pytest.mark.parametrize("seed", range(3))
def test_other_planners_gain_as_well(seed: int) -> None:
    """A planner trained on drafts of the uncertain denoiser, and the exact denoiser of uniform noise as an external
    one: less mass off the words, in samples, than ancestral sampling has exactly."""
    world = code(seed)
    denoiser, data, times = uncertain(world, 0.5), world.as_states(CODE_PROCESS), time_grid(10)
    off = data < 0.01
    plain = world.sampler_law(Ancestral(process=CODE_PROCESS).transition, denoiser, CODE_PROCESS, times)
    noisy = world.denoiser(Uniform(vocab_size=2))
    for name, judge in (
        ("trained", learned(trained_planner(world, denoiser, seed))),
        ("external", external(noisy, t=0.2)),
    ):
        sampler = PathPlanning(process=CODE_PROCESS, judge=judge)
        drawn = sample(sampler, denoiser, (1000, 5), num_steps=10, rng=Rng(seed))
        assert isinstance(drawn, Tensor)
        wrong = float(off[state_index(drawn, 3)].double().mean())
        print(f"seed {seed}: {name} planner {wrong:.3f} off the words, ancestral {float(plain[off].sum()):.3f}")
        assert wrong < 0.7 * float(plain[off].sum())


class Table(Denoiser):
    """A planner with free logits for every canvas of five bits."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(32, 5, 2))

    def forward(self, xt: Tensor, t: Tensor, **cond: Any) -> Categorical:  # type: ignore[override]
        return Categorical.from_logits(self.logits[state_index(xt, 2)])


def trained_planner(world: TinyJoint, denoiser: Denoiser, seed: int) -> Table:
    planner, loss = Table(), PathPlannerLoss(process=CODE_PROCESS, model=denoiser)
    optimizer = torch.optim.Adam(planner.parameters(), lr=0.1)
    for step in range(40):
        x0 = world.sample(512, Rng(seed).fold(step))
        optimizer.zero_grad()
        loss(planner, x0, Rng(seed).fold(step, 1)).mean().backward()
        optimizer.step()
    return planner


def test_finished_rows_cost_nothing() -> None:
    denoiser, canvas = Lookup(TinyJoint.random(3, 4, seed=1), 4), torch.tensor([[0, 1, 2, 0]])
    one = list(trajectory(PathPlanning(process=PROCESS), denoiser, canvas, 0.2 * time_grid(3), rng=Rng(0)))
    assert [event.network_calls for event in one] == [0, 0, 0], "fewer than one mask of four sites is wanted"
    more = list(trajectory(PathPlanning(process=PROCESS), denoiser, canvas, 0.8 * time_grid(2), rng=Rng(0)))
    assert [event.network_calls for event in more] == [1, 2], "judged by hiding; then the mask is filled"
    assert all_masks(PathPlanning(process=PROCESS), 2).nonzero().tolist() == [[15]]
    assert enumerate_states(4, 2)[15].tolist() == [3, 3]


def test_refuses() -> None:
    world = TinyJoint.random(3, 4, seed=1)
    for eta in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eta"):
            PathPlanning(process=PROCESS, eta=eta)
    with pytest.raises(TypeError, match="Masked"):
        PathPlanning(process=Uniform(vocab_size=3))  # type: ignore[arg-type]
    for broken in (lambda draft: torch.zeros(1), lambda draft: torch.full((int(draft.decoded.sum()),), torch.nan)):
        with pytest.raises(ValueError, match="decoded"):
            sample(PathPlanning(process=PROCESS, judge=broken), Lookup(world, 4), (3, 4), num_steps=4, rng=Rng(0))
    with pytest.raises(ValueError, match="top_probability"):
        sample(PathPlanning(process=PROCESS, order=margin()), Lookup(world, 4), (3, 4), num_steps=4, rng=Rng(0))
