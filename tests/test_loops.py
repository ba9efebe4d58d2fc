import pytest
import torch

from helpers import CountingHead
from unmask import Rng, sample, sample_blocks, time_grid, trajectory
from unmask.denoisers.masked import MaskedDenoiser
from unmask.oracles.statistics import chi_square
from unmask.oracles.tiny_joint import TinyJoint, state_index
from unmask.processes.masked import Masked
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


@pytest.mark.parametrize("times", [[1.0], [0.5, 0.5], [0.2, 0.8]])
def test_times_must_decrease(times: list[float]) -> None:
    with pytest.raises(ValueError, match="decrease strictly"):
        list(trajectory(SAMPLER, denoiser(), torch.full((1, 2), 5), torch.tensor(times).double(), rng=Rng(0)))


@pytest.mark.parametrize("num_steps", [0, -1])
def test_no_steps_is_an_error(num_steps: int) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        time_grid(num_steps)


def test_blocks_are_filled_left_to_right_and_hit_the_exact_law() -> None:
    """Blocks of one token are an autoregressive order: one step per block samples the model's law exactly."""
    world = TinyJoint.random(3, 3, seed=5)
    process = Masked(vocab_size=4, mask_id=3)
    sampler, n = Ancestral(process=process), 200_000
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
        list(sample_blocks(SAMPLER, denoiser(), torch.full((1, 2), 5), time_grid(1), block_size=0, rng=Rng(0)))


def test_a_canvas_keeps_its_fixed_sites() -> None:
    canvas = torch.tensor([[1, 0, 2, 0]])
    editable = torch.tensor([[False, True, False, True]])
    out = sample(SAMPLER, denoiser(), canvas, num_steps=4, rng=Rng(0), editable=editable)
    assert out[0, [0, 2]].tolist() == [1, 2]
    assert bool((out != 5).all())
