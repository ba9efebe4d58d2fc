import numpy as np
import pytest
import torch

from unmask import Rng
from unmask.oracles.statistics import chi_square
from unmask.rng import _mix, _mix_signed, _signed_uniforms, _signed_words


def test_a_draw_is_a_function_of_its_address_alone() -> None:
    full = Rng(3).fold(5).uniform((6, 7))
    assert torch.equal(full, Rng(3).fold(5).uniform((6, 7))), "drawing consumed something"
    some = Rng(3).rows(torch.tensor([4, 1])).fold(5).uniform((2, 7))
    assert torch.equal(some, full[[4, 1]])
    shifted = Rng(3).fold(5).positions(torch.arange(2, 5).expand(6, -1)).uniform((6, 3))
    assert torch.equal(shifted, full[:, 2:5])


def test_streams_differ() -> None:
    base = Rng(0)
    streams = [base, base.fold(0), base.fold(1), base.fold(0, 1), base.fold(1, 0), Rng(1), Rng(1).fold(1)]
    firsts = {float(r.uniform((1,))) for r in streams} | {r.scalar() for r in streams}
    assert len(firsts) == 2 * len(streams)


def test_known_values_never_move() -> None:
    """Saved runs depend on the generator: changing it is a breaking change."""
    torch.testing.assert_close(
        Rng(42).fold(7).uniform((1, 2)), torch.tensor([KNOWN], dtype=torch.float64), atol=0, rtol=0
    )


KNOWN = [0.32934712660504284, 0.5838775840012521]


def test_uniforms_are_uniform_and_open() -> None:
    u = Rng(1).uniform((1000, 1000)).flatten()
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    bins = (u * 1000).long().bincount(minlength=1000)
    assert chi_square(bins, torch.full((1000,), 1e-3).double()) > 1e-7


@pytest.mark.parametrize("axis", ["rows", "positions", "folds", "seeds"])
def test_neighbouring_addresses_are_independent(axis: str) -> None:
    n = 200_000
    if axis == "rows":
        u = Rng(2).uniform((n,))
    elif axis == "positions":
        u = Rng(2).uniform((1, n)).flatten()
    else:
        n = 20_000
        u = torch.tensor([(Rng(2).fold(k) if axis == "folds" else Rng(k)).scalar() for k in range(n)])
    pairs = (u[:-1] * 8).long() * 8 + (u[1:] * 8).long()
    assert chi_square(pairs[::2].bincount(minlength=64), torch.full((64,), 1 / 64).double()) > 1e-7


def test_normals_have_normal_quantiles() -> None:
    z = Rng(4).normal((1_000_000,))
    edges = torch.special.ndtri(torch.linspace(0, 1, 101, dtype=torch.float64)[1:-1])
    counts = torch.bucketize(z, edges).bincount(minlength=100)
    assert chi_square(counts, torch.full((100,), 0.01).double()) > 1e-7


def test_says_which_rows_are_missing() -> None:
    with pytest.raises(ValueError, match="asked for 3 rows"):
        Rng(0).rows(torch.arange(2)).uniform((3, 4))
    with pytest.raises(ValueError, match="positions"):
        Rng(0).positions(torch.zeros(2, 2, dtype=torch.int64)).uniform((2, 5))


@pytest.mark.parametrize("named", [False, True])
def test_numbers_at_few_sites_are_those_of_all_sites(named: bool) -> None:
    rng, shape = Rng(5).fold(3), (4, 7)
    if named:
        rng = rng.rows(torch.tensor([9, 2, 2**40, 0])).positions(torch.arange(28).reshape(4, 7) * 3 % 11)
    index = torch.tensor([0, 6, 7, 20, 27])
    assert torch.equal(rng.uniform_at(index, shape), rng.uniform(shape).flatten()[index])
    assert torch.equal(Rng(1).uniform_at(torch.tensor([2]), (3,)), Rng(1).uniform((3,))[2:])


def test_signed_and_unsigned_words_mix_alike() -> None:
    words = torch.cat([torch.arange(-500, 500), torch.tensor([2**63 - 1, -(2**63)])])
    mixed = _mix(words.clone().numpy().view(np.uint64)).view(np.int64)
    assert torch.equal(torch.from_numpy(mixed), _mix_signed(words.clone()))


def test_accelerators_draw_the_same_numbers() -> None:
    """Their arithmetic, run here."""
    rng = Rng(3).fold(7).rows(torch.tensor([0, 5, 2**40, 2**63 - 1]))
    rows, sites = rng._addresses((4, 9), None)
    words = _signed_words(rows[:, None], sites, rng.key)
    assert torch.equal(words, rng.bits((4, 9)))
    assert torch.equal(_signed_uniforms(words), rng.uniform((4, 9)))


def test_columns_have_their_own_streams_and_positions() -> None:
    rng, named = Rng(1), torch.tensor([[2, 0], [1, 1]])
    keyed = rng.columns({"a": named})
    assert torch.equal(
        keyed.column("a").uniform((2, 2)), rng.column("a").uniform((2, 3))[torch.arange(2)[:, None], named]
    )
    assert torch.equal(keyed.fold(3).column("b").uniform((2, 2)), rng.fold(3).column("b").uniform((2, 2)))
    assert not torch.equal(rng.column("a").uniform((2, 2)), rng.column("b").uniform((2, 2)))
    second = keyed.take(torch.tensor([False, True]))
    assert torch.equal(second.column("a").uniform((1, 2)), keyed.column("a").uniform((2, 2))[1:])
    assert rng.positions(torch.zeros(0, 3, dtype=torch.int64)).uniform((0, 3)).shape == (0, 3)


def test_channels_follow_their_named_site() -> None:
    """A site keeps the draws of all its channels wherever it stands in the row."""
    plain = Rng(3).uniform((2, 5, 4))
    order = torch.tensor([[3, 1], [0, 4]])
    named = Rng(3).positions(order).uniform((2, 2, 4))
    assert torch.equal(named, plain[torch.arange(2)[:, None], order])
    flat = torch.tensor([0, 5, 15])
    assert torch.equal(Rng(3).positions(order).uniform_at(flat, (2, 2, 4)), named.flatten()[flat])
