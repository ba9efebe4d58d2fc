import pytest
import torch

from contracts import DiscreteProcessContract, SamplerContract, time
from helpers import CountingHead
from unmask import Categorical, DiscreteProcess, Rng, time_grid
from unmask.denoisers.masked import MaskedDenoiser
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TinyJoint
from unmask.processes.masked import Masked
from unmask.processes.token_masked import TokenMasked
from unmask.samplers.ancestral import Ancestral
from unmask.schedules.polynomial import Polynomial
from unmask.schedules.power_vector import PowerVector
from unmask.schedules.spindle import Spindle

SCHEDULES = [
    PowerVector(powers=(2 / 3, 1.0, 7 / 3, 1.0)),
    Spindle(information=(0.4, 1.0, 2.5, 1.0), mean_information=1.0),
]


class TestTokenMasked(DiscreteProcessContract):
    @pytest.fixture(autouse=True, params=SCHEDULES, ids=lambda schedule: type(schedule).__name__)
    def _schedule(self, request: pytest.FixtureRequest) -> None:
        self.schedule = request.param

    def make(self) -> TokenMasked:
        return TokenMasked(vocab_size=4, mask_id=3, schedule=self.schedule)


class TestAncestralOverTokenMasked(SamplerContract):
    num_steps = 3

    def world(self) -> TinyJoint:
        return TinyJoint.random(3, 2, seed=5)

    def make(self) -> tuple[Ancestral, TokenMasked]:
        process = TokenMasked(vocab_size=4, mask_id=3, schedule=SCHEDULES[0])
        return Ancestral(process=process), process


def test_equal_powers_are_the_scalar_schedule() -> None:
    vector = TokenMasked(vocab_size=4, mask_id=3, schedule=PowerVector(powers=(2.0,) * 4))
    scalar = Masked(vocab_size=4, mask_id=3, schedule=Polynomial(power=2.0))
    x0, t = torch.randint(0, 3, (64, 9), generator=torch.Generator().manual_seed(0)), Rng(1).uniform((64,))
    xt = vector.corrupt(x0, t, Rng(2))
    assert torch.equal(xt, scalar.corrupt(x0, t, Rng(2)))
    law = MaskedDenoiser(CountingHead(4), vocab_size=4, mask_id=3)(xt, t)
    torch.testing.assert_close(
        vector.nelbo_rate(law, x0, xt, t), scalar.nelbo_rate(law, x0, xt, t), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        vector.reverse(law, xt, t, t / 2).log_probs(),  # type: ignore[attr-defined]
        scalar.reverse(law, xt, t, t / 2).log_probs(),  # type: ignore[attr-defined]
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_mask_may_stand_anywhere_and_its_entry_means_nothing() -> None:
    """Renaming the states renames the law; the mask's own power, huge or tiny, leaks into nothing."""
    last = TokenMasked(vocab_size=3, mask_id=2, schedule=PowerVector(powers=(0.5, 3.0, 1.0)))
    rename = torch.tensor([0, 2, 1])
    xt, t, s = torch.tensor([[0, 2, 1, 2]]), time(0.7), time(0.4)
    logits = Rng(0).normal((1, 4, 3)).index_fill(2, torch.tensor([2]), -torch.inf)
    expected = last.reverse(Categorical.from_logits(logits).with_known(xt, xt != 2), xt, t, s)
    for power in (1e-3, 80.0):
        middle = TokenMasked(vocab_size=3, mask_id=1, schedule=PowerVector(powers=(0.5, power, 3.0)))
        law = Categorical.from_logits(logits[..., rename]).with_known(rename[xt], xt != 2)
        step = middle.reverse(law, rename[xt], t, s)
        torch.testing.assert_close(
            step.log_probs()[..., rename],  # type: ignore[attr-defined]
            expected.log_probs(),  # type: ignore[attr-defined]
        )
        assert torch.equal(step.sample(Rng(1)), rename[expected.sample(Rng(1))])  # type: ignore[index]


def test_the_exact_sampler_converges_to_the_data() -> None:
    process = TokenMasked(vocab_size=4, mask_id=3, schedule=SCHEDULES[0])
    world = TestTokenMasked().world()
    target, step = world.as_states(process), Ancestral(process=process).transition
    coarse, fine = (
        total_variation(world.sampler_law(step, world.denoiser(process), process, time_grid(n)), target)
        for n in (8, 64)
    )
    assert fine < coarse / 5
    assert fine < 0.01


def test_the_head_sees_candidates_only() -> None:
    """Sites are tried with the highest chance of any token: 1 - (s/t)^3 here, and no other site costs a head row."""
    process = TokenMasked(vocab_size=6, mask_id=5, schedule=PowerVector(powers=(1.0, 3.0, 0.5, 2.0, 1.5, 60.0)))
    net, n = CountingHead(6), 40_000
    xt = torch.full((4, n // 4), 5)
    law = process.reverse(MaskedDenoiser(net, vocab_size=6, mask_id=5)(xt, time(0.8)), xt, time(0.8), time(0.79))
    law.sample(Rng(0))
    chance = 1 - (0.79 / 0.8) ** 3
    assert abs(net.rows_seen - n * chance) < 5.3 * (n * chance) ** 0.5


def test_a_vocabulary_of_fifty_thousand_at_the_ends_of_time() -> None:
    v = 50_000
    process = TokenMasked(vocab_size=v, mask_id=0, schedule=PowerVector(powers=tuple(0.01 + k / 500 for k in range(v))))
    xt, x0 = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[1, 25_000, v - 1]])
    for t, s in [(1e-12, 0.0), (1 - 1e-12, 1e-12), (1.0, 1 - 1e-12)]:
        law = MaskedDenoiser(MaskAtZero(v), vocab_size=v, mask_id=0)(xt, time(t))
        step = process.reverse(law, xt, time(t), time(s))
        assert bool(step.sample(Rng(1)).lt(v).all())  # type: ignore[union-attr]
        assert not bool(step.log_probs().isnan().any())  # type: ignore[attr-defined]
        assert bool(process.nelbo_rate(law, x0, xt, time(t)).isfinite().all())


@pytest.mark.parametrize("per_site", [False, True])
@pytest.mark.parametrize("schedule", ["power", "spindle"])
def test_float32_logits_of_a_large_vocabulary_give_the_derived_bound(schedule: str, per_site: bool) -> None:
    """Hazards made once a time, in one product, against every rate in float64; one time a row, or one a site."""
    v, weights = 2000, tuple((0.5 + 2 * Rng(0).uniform((1, 2000))[0]).tolist())
    process = TokenMasked(
        vocab_size=v,
        mask_id=0,
        schedule=PowerVector(powers=weights)
        if schedule == "power"
        else Spindle(information=weights, mean_information=1.5),
    )
    t = Rng(1).uniform((4, 3)) if per_site else Rng(1).uniform((4,))
    x0 = 1 + (Rng(2).uniform((4, 3)) * (v - 1)).long()
    xt = process.corrupt(x0, t, Rng(3))
    assert 0 < int((xt == 0).sum()) < 12
    logits = 3 * Rng(4).normal((4, 3, v)).index_fill(2, torch.tensor([0]), -torch.inf)
    values = [
        function(process, Categorical.from_logits(x).with_known(xt, xt != 0), x0, xt, t)
        for function, x in ((TokenMasked.nelbo_rate, logits.float()), (DiscreteProcess.nelbo_rate, logits))
    ]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    assert float(process.prior_kl(x0).abs().max()) == 0
    assert float(DiscreteProcess.prior_kl(process, x0).abs().max()) < 1e-12


class MaskAtZero(CountingHead):
    """The doubles' network in bfloat16."""

    def forward(self, tokens: torch.Tensor, t: torch.Tensor, **cond: object) -> torch.Tensor:
        return self.table[tokens].bfloat16()

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.weight.T.bfloat16()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_id": 4}, "mask_id=4"),
        ({"schedule": PowerVector(powers=(1.0, 2.0))}, "2 entries"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    valid = {"vocab_size": 4, "mask_id": 3, "schedule": PowerVector(powers=(1.0,) * 4)}
    with pytest.raises(ValueError, match=message):
        TokenMasked(**{**valid, **arguments})
