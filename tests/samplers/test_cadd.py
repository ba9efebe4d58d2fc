"""Masked sampling with latents, on three copied bits and on random tables."""

import pytest
import torch

from contracts import PaddedChain, PaddedVectors, StateContract, time
from helpers import fit
from hybrid_worlds import ExactHybrid, copied_bits, one_hot_table, product
from loop_worlds import Bag
from unmask import Categorical, Denoiser, ProductLaw, Rng, Sampler, SiteLaw, State, sample, time_grid, trajectory
from unmask.denoisers.cadd import LATENT, TOKENS, CADDDenoiser, EmbeddingLaw
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.cadd import CADDLoss
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.cadd import CADDSampler

PROCESS, TABLE, MASKED = product(2), one_hot_table(2), Masked(vocab_size=3, mask_id=2)


def law_of(sampler: CADDSampler, model: Denoiser, steps: int, n: int) -> torch.Tensor:
    """The empirical law of the tokens over all 27 states."""
    out = sample(sampler, model, {TOKENS: (n, 3), LATENT: (n, 3, 2)}, num_steps=steps, rng=Rng(1))
    assert isinstance(out, dict)
    return state_index(out[TOKENS], 3).bincount(minlength=27).double() / n


def entropy(law: torch.Tensor) -> float:
    return float(-torch.special.xlogy(law, law).sum())


def masked_law(world: TinyJoint, steps: int) -> torch.Tensor:
    return world.sampler_law(Ancestral(process=MASKED).transition, world.denoiser(MASKED), MASKED, time_grid(steps))


@pytest.mark.parametrize(("steps", "gain"), [(2, 0.03), (4, 0.04)])
def test_exact_models_copy_better_with_latents_and_hard_estimates_are_sharper(steps: int, gain: float) -> None:
    """Total variation at few steps, exact denoisers on both sides; the standard error is below 0.004."""
    world, n = copied_bits(), 15_000
    data, masked = world.as_states(MASKED), masked_law(world, steps)
    model = ExactHybrid(world, PROCESS, TABLE)
    soft = law_of(CADDSampler(process=PROCESS, estimate="soft"), model, steps, n)
    hard = law_of(CADDSampler(process=PROCESS, estimate="hard"), model, steps, n)
    assert total_variation(soft, data) < total_variation(masked, data) - gain
    assert entropy(hard) < entropy(soft) - 0.03 < entropy(masked) - 0.06


def test_soft_estimates_converge_and_hard_ones_keep_leaning_to_the_mode() -> None:
    world, n = copied_bits(), 6_000
    data, model = world.as_states(MASKED), ExactHybrid(world, PROCESS, TABLE)
    soft = law_of(CADDSampler(process=PROCESS), model, 40, n)
    hard = law_of(CADDSampler(process=PROCESS, estimate="hard"), model, 40, n)
    assert total_variation(soft, data) < 0.03
    assert total_variation(hard, data) > total_variation(soft, data) + 0.015
    assert float(hard[0]) > 0.58 > float(soft[0]), "the likelier word takes over"


def test_strength_zero_is_the_masked_model_exactly() -> None:
    """The kernels of both samplers, and hence their laws, are equal in every bit."""
    net = Bag(vocab_size=3, length=3, dim=8, width=16, seed=0)
    inner = MaskedDenoiser(net, vocab_size=3, mask_id=2)
    model = CADDDenoiser(inner, embeddings=TABLE, mask_id=2, dim=8, strength=0.0)
    states = enumerate_states(3, 3)

    def tokens_only(denoiser: Denoiser, x: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> SiteLaw:
        noisy = {TOKENS: x, LATENT: Rng(3).normal((len(x), 3, 2))}
        law = CADDSampler(process=PROCESS, estimate="hard").transition(denoiser, noisy, t, s).column(TOKENS)
        assert isinstance(law, SiteLaw)
        return law

    plain = Ancestral(process=MASKED).transition
    for t, s in [(1.0, 0.5), (0.4, 0.0)]:
        at, to = time(t).expand(27), time(s).expand(27)
        expected = plain(inner, states, at, to)
        assert isinstance(expected, SiteLaw)
        assert torch.equal(tokens_only(model, states, at, to).log_probs(), expected.log_probs())
    world = TinyJoint.random(2, 3, seed=1)
    mine = world.sampler_law(tokens_only, model, MASKED, time_grid(3))
    assert torch.equal(mine, world.sampler_law(plain, inner, MASKED, time_grid(3)))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_trained_networks_copy_better_with_latents(seed: int) -> None:
    """Equal networks, data and steps; 32 more parameters read the latents."""
    world = copied_bits()

    def data(step: int) -> torch.Tensor:
        return world.sample(64, Rng(seed).fold(9, step))

    def fresh() -> MaskedDenoiser:
        return MaskedDenoiser(Bag(vocab_size=3, length=3, dim=16, width=64, seed=seed), vocab_size=3, mask_id=2)

    plain = fresh()
    fit(plain.parameters(), MaskedNELBO(process=MASKED), plain, data, steps=120, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CADDDenoiser(fresh(), embeddings=TABLE.float(), mask_id=2, dim=16)
    loss = CADDLoss(process=PROCESS, embeddings=TABLE.float())
    fit(model.parameters(), loss, model, data, steps=120, seed=seed)
    for steps in (2, 4):
        with torch.no_grad():
            masked = world.sampler_law(Ancestral(process=MASKED).transition, plain, MASKED, time_grid(steps))
            mine = law_of(CADDSampler(process=PROCESS), model, steps, 4_000)
        gap = total_variation(mine, world.as_states(MASKED)) - total_variation(masked, world.as_states(MASKED))
        print(f"seed {seed}, {steps} steps: {gap:+.4f} from {total_variation(masked, world.as_states(MASKED)):.4f}")
        assert gap < -0.015


class PaddedHybrid(Denoiser):
    """A model of any length that reads its neighbours' tokens and all real latents."""

    def forward(
        self, xt: State, t: torch.Tensor, *, attention_mask: torch.Tensor | None = None, **cond: object
    ) -> ProductLaw:
        assert isinstance(xt, dict)
        told = {"attention_mask": attention_mask}
        by_tokens, by_latents = PaddedChain(3)(xt[TOKENS], t, **told), PaddedVectors(3)(xt[LATENT], t, **told)
        unknown = xt[TOKENS] == 2
        logits = by_tokens.log_probs() + by_latents.log_probs().where(unknown[..., None], 0.0)
        law = Categorical.from_logits(logits)
        return ProductLaw({TOKENS: law, LATENT: EmbeddingLaw(law, TABLE, xt[TOKENS], unknown)})


class TestContract(StateContract):
    def make(self) -> tuple[Sampler, Denoiser]:
        return CADDSampler(process=PROCESS), PaddedHybrid()

    def shape(self, rows: int, length: int) -> dict[str, tuple[int, ...]]:
        return {TOKENS: (rows, length), LATENT: (rows, length, 2)}


class TestContractOfHardEstimates(TestContract):
    def make(self) -> tuple[Sampler, Denoiser]:
        return CADDSampler(process=PROCESS, estimate="hard"), PaddedHybrid()


def test_fixed_tokens_have_no_score_and_no_mask_is_left() -> None:
    sampler, model = CADDSampler(process=PROCESS), ExactHybrid(copied_bits(), PROCESS, TABLE)
    editable = {TOKENS: torch.tensor([[False, True, True]]).expand(6, -1)}
    start = PROCESS.prior({TOKENS: (6, 3), LATENT: (6, 3, 2)}, Rng(4))
    assert isinstance(start, dict)
    seen = start[TOKENS] = start[TOKENS].index_fill(1, torch.tensor([0]), 1)
    for event in trajectory(sampler, model, start, time_grid(4), rng=Rng(5), editable=editable):
        assert isinstance(event.canvas, dict)
        assert isinstance(event.newly_set, dict)
        assert isinstance(event.commit_log_prob, dict)
        assert not bool(event.newly_set[TOKENS][:, 0].any())
        assert torch.equal(~event.commit_log_prob[TOKENS].isnan(), event.newly_set[TOKENS])
        seen = event.canvas[TOKENS]
    assert bool((seen < 2).all())


def test_says_what_it_wants() -> None:
    with pytest.raises(ValueError, match="'soft' or 'hard'"):
        CADDSampler(process=PROCESS, estimate="mean")
    sampler = CADDSampler(process=PROCESS)
    model = ExactHybrid(copied_bits(), PROCESS, TABLE, known_latents=False)
    with pytest.raises(TypeError, match="EmbeddingLaw"):
        sample(sampler, model, {TOKENS: (1, 3), LATENT: (1, 3, 2)}, num_steps=1, rng=Rng(0))
