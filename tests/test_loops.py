from dataclasses import dataclass
from typing import Any

import pytest
import torch

from contracts import PaddedChain
from helpers import CountingHead
from unmask import Carry, Denoiser, Dirac, Law, ProductLaw, Rng, Sampler, sample, sample_blocks, time_grid, trajectory
from unmask.denoisers.masked import MaskedDenoiser
from unmask.loops import start
from unmask.loss import row_positions
from unmask.oracles.statistics import chi_square
from unmask.oracles.tiny_joint import TinyJoint, state_index
from unmask.processes.gaussian import Gaussian
from unmask.processes.masked import Masked
from unmask.processes.product import Product
from unmask.samplers.ancestral import Ancestral

PROCESS = Masked(vocab_size=6, mask_id=5)
SAMPLER = Ancestral(process=PROCESS)


def denoiser() -> MaskedDenoiser:
    return MaskedDenoiser(CountingHead(vocab_size=6), vocab_size=6, mask_id=5)


def test_steps_tell_the_whole_story() -> None:
    x = torch.full((2, 12), 5)
    seconds = 0.0
    for k, event in enumerate(trajectory(SAMPLER, denoiser(), x, time_grid(5), rng=Rng(0))):
        assert event.index == k
        assert (event.t, event.s) == (pytest.approx(1 - k / 5), pytest.approx(1 - (k + 1) / 5))
        assert torch.equal(event.newly_set, event.canvas != x)
        assert torch.equal(~event.commit_log_prob.isnan(), event.newly_set)
        assert not bool(event.remasked.any())
        assert event.network_calls <= k + 1
        assert event.seconds >= seconds
        x, seconds = event.canvas, event.seconds
    assert bool((x != 5).all())


@pytest.mark.parametrize("times", [[1.0], [0.5, 0.5], [0.2, 0.8], [2.0, 0.0], [1.0, -0.5]])
def test_times_must_decrease(times: list[float]) -> None:
    with pytest.raises(ValueError, match="decrease strictly"):
        trajectory(SAMPLER, denoiser(), torch.full((1, 2), 5), torch.tensor(times).double(), rng=Rng(0))


@pytest.mark.parametrize("num_steps", [0, -1])
def test_no_steps_is_an_error(num_steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        time_grid(num_steps)


def test_blocks_are_filled_left_to_right_and_hit_the_exact_law() -> None:
    """Blocks of one token are an autoregressive order: one step per block samples the model's law exactly."""
    world = TinyJoint.random(3, 3, seed=5)
    process = Masked(vocab_size=4, mask_id=3)
    sampler, n = Ancestral(process=process), 100_000
    times = torch.tensor([0.999, 0.0]).double()  # at t = 1 exactly, a world with fixed tokens has probability zero
    seen = []
    for event in sample_blocks(
        sampler, world.denoiser(process), torch.full((n, 3), 3), times, block_size=1, rng=Rng(0)
    ):
        seen.append((event.index, event.network_calls, event.newly_set.any(0).tolist()))
        canvas = event.canvas
    assert seen == [(0, 1, [True, False, False]), (1, 2, [False, True, False]), (2, 3, [False, False, True])]
    counts = state_index(canvas, 4).bincount(minlength=64)
    assert chi_square(counts, world.as_states(process)) > 1e-7


def test_block_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="block_size"):
        sample_blocks(SAMPLER, denoiser(), torch.full((1, 2), 5), time_grid(1), block_size=0, rng=Rng(0))


def test_a_canvas_keeps_its_fixed_sites() -> None:
    canvas = torch.tensor([[1, 0, 2, 0]])
    editable = torch.tensor([[False, True, False, True]])
    out = sample(SAMPLER, denoiser(), canvas, num_steps=4, rng=Rng(0), editable=editable)
    assert out[0, [0, 2]].tolist() == [1, 2]
    assert bool((out != 5).all())


def test_the_callers_gradient_mode_is_its_own() -> None:
    first = trajectory(SAMPLER, denoiser(), torch.full((1, 4), 5), time_grid(3), rng=Rng(0))
    second = trajectory(SAMPLER, denoiser(), torch.full((1, 4), 5), time_grid(3), rng=Rng(0))
    for _ in zip(first, second, strict=True):
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_masks_that_may_not_be_edited_cost_nothing_and_stay() -> None:
    net = CountingHead(vocab_size=6)
    model = MaskedDenoiser(net, vocab_size=6, mask_id=5)
    editable = torch.tensor([[False, False, False, True, True]])
    *_, last = trajectory(SAMPLER, model, torch.full((1, 5), 5), time_grid(8), rng=Rng(0), editable=editable)
    assert last.canvas[0, :3].tolist() == [5, 5, 5]
    assert net.rows_seen == 2
    assert last.network_calls <= 2


def test_blocks_ask_for_each_token_once_and_skip_what_is_given() -> None:
    net = CountingHead(vocab_size=6)
    model = MaskedDenoiser(net, vocab_size=6, mask_id=5)
    canvas = torch.full((1, 32), 5)
    canvas[:, :16] = 1
    steps = list(sample_blocks(SAMPLER, model, canvas, time_grid(4), block_size=4, rng=Rng(0), editable=canvas == 5))
    assert net.rows_seen == 16
    assert len(steps) == 4 * 4, "blocks of given tokens were run"
    assert [event.index for event in steps] == list(range(16))
    for event in steps:
        assert torch.equal(~event.commit_log_prob.isnan(), event.newly_set)


def test_blocks_do_not_see_padding() -> None:
    def run(left: int, right: int) -> list[int]:
        mask = torch.tensor([[False] * left + [True] * 6 + [False] * right])
        canvas = torch.where(mask, 5, 0)
        *_, last = sample_blocks(
            SAMPLER, PaddedChain(6), canvas, time_grid(3), block_size=2, rng=Rng(4), editable=mask, attention_mask=mask
        )
        assert bool((last.canvas[~mask] == 0).all())
        return last.canvas[mask].tolist()

    assert run(0, 0) == run(1, 0) == run(2, 1) == run(0, 3)


def test_padding_keeps_its_values_without_an_editable_mask() -> None:
    mask = torch.tensor([[True, True, True, False, False]])
    out = sample(SAMPLER, denoiser(), torch.tensor([[0, 1, 2, 4, 4]]), num_steps=3, rng=Rng(0), attention_mask=mask)
    assert out[0, 3:].tolist() == [4, 4]
    assert bool((out != 5).all())


@dataclass(frozen=True, kw_only=True)
class Forgetful(Sampler):
    """Sets everything, then re-masks the first site at every step but the last: the smallest re-masking sampler."""

    def prior(self, shape: Any, rng: Rng) -> torch.Tensor:
        return PROCESS.prior(shape, rng)

    def step(self, denoiser: Denoiser, x: Any, t: Any, s: Any, carry: Carry, rng: Rng, **cond: Any) -> Any:
        drawn, commit = denoiser(x, t).draw(rng)
        back = torch.zeros_like(x, dtype=torch.bool)
        back[:, 0] = s[0] > 0
        return drawn.masked_fill(back, 5), Carry(commit_log_prob=commit, remasked=back)


def test_remasked_sites_are_told_apart() -> None:
    events = list(trajectory(Forgetful(), denoiser(), torch.full((1, 3), 5), time_grid(3), rng=Rng(0)))
    assert [e.remasked.tolist() for e in events] == [[[False] * 3]] * 3, "a mask that stays is not re-masked"
    assert events[0].newly_set.tolist() == [[False, True, True]]
    assert events[2].newly_set.tolist() == [[True, False, False]]
    start = torch.tensor([[1, 5, 5]])
    first = next(iter(trajectory(Forgetful(), denoiser(), start, time_grid(3), rng=Rng(0))))
    assert first.remasked.tolist() == [[True, False, False]]
    assert first.newly_set.tolist() == [[False, True, True]]


class Still(Denoiser):
    """Certain zeros, for every column."""

    def forward(self, xt: Any, t: torch.Tensor, **cond: Any) -> Law:
        if isinstance(xt, dict):
            return ProductLaw({name: self(value, t) for name, value in xt.items()})
        return Dirac(torch.zeros_like(xt))


@pytest.mark.parametrize("columns", [False, True])
def test_padding_covers_the_channels_of_a_site_and_every_column(columns: bool) -> None:
    one = Gaussian()
    sampler = Ancestral(process=Product(columns={"a": one, "b": one}) if columns else one)

    def run(left: int) -> Any:
        mask = torch.tensor([[False] * left + [True] * 3]).expand(2, -1)
        state = torch.full((2, left + 3, 2), 7.0).double()
        canvas = {"a": state, "b": state[..., 0]} if columns else state
        times = torch.tensor([1.0, 0.7, 0.4]).double()
        x = start(sampler, canvas, row_positions(mask, Rng(3)), _editable(canvas, mask))
        *_, last = trajectory(sampler, Still(), x, times, rng=Rng(3), attention_mask=mask)
        return last.canvas

    bare, padded = run(0), run(4)
    for name in ("a", "b") if columns else (None,):
        value, wanted = (padded, bare) if name is None else (padded[name], bare[name])
        assert torch.equal(value[:, 4:], wanted)
        assert bool((value[:, :4] == 7).all())


def test_a_mask_of_columns_side_by_side_tells_each_its_part() -> None:
    """Columns of different lengths, as of text beside an image."""
    one = Masked(vocab_size=6, mask_id=5)
    sampler = Ancestral(process=Product(columns={"a": one, "b": one}))

    class Both(Denoiser):
        def forward(self, xt: Any, t: torch.Tensor, *, attention_mask: torch.Tensor, **cond: object) -> ProductLaw:
            a, b = attention_mask.split([xt["a"].shape[1], xt["b"].shape[1]], 1)
            chain = PaddedChain(6)
            return ProductLaw({"a": chain(xt["a"], t, attention_mask=a), "b": chain(xt["b"], t, attention_mask=b)})

    def run(left: int, right: int) -> dict[str, torch.Tensor]:
        real = {"a": torch.tensor([[False] * left + [True] * 3]), "b": torch.tensor([[True] * 4 + [False] * right])}
        canvas = {k: torch.full((8, v.shape[1]), 1) for k, v in real.items()}
        mask = torch.cat([v.expand(8, -1) for v in real.values()], 1)
        out = sample(sampler, Both(), canvas, num_steps=4, rng=Rng(1), attention_mask=mask)
        assert isinstance(out, dict)
        assert bool((out["a"][:, :left] == 1).all())
        return {"a": out["a"][:, left:], "b": out["b"][:, :4]}

    for left, right in [(2, 0), (0, 3), (1, 1)]:
        assert all(torch.equal(v, run(0, 0)[k]) for k, v in run(left, right).items())
    everywhere, canvas = torch.ones(1, 2, dtype=torch.bool), {k: torch.ones(1, 2, dtype=torch.int64) for k in "ab"}
    with pytest.raises(TypeError, match="one editable tensor"):
        sample(sampler, Both(), canvas, num_steps=1, rng=Rng(0), editable=everywhere, attention_mask=everywhere)


def _editable(canvas: Any, mask: torch.Tensor) -> Any:
    if isinstance(canvas, dict):
        return {name: _editable(value, mask) for name, value in canvas.items()}
    return mask.reshape(*mask.shape, *[1] * (canvas.ndim - 2)).expand(canvas.shape)


def test_the_loop_shows_what_else_a_denoiser_offers() -> None:
    class Offering(Still):
        answer = 42

    class Asking(Ancestral):
        def step(self, denoiser: Any, x: Any, *rest: Any, **options: Any) -> Any:
            assert denoiser.answer == 42
            assert not hasattr(denoiser, "question")
            return super().step(denoiser, x, *rest, **options)

    sample(Asking(process=Gaussian()), Offering(), (1, 2), num_steps=1, rng=Rng(0))
