import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import PaddedChain, SamplerContract, time
from guided_worlds import Given, LabelledWorld
from unmask import Denoiser, DiscreteProcess, Rng, Sampler, ask, sample, time_grid
from unmask.guidance.classifier import ClassifierGuided
from unmask.oracles.statistics import total_variation
from unmask.oracles.tiny_joint import TableDenoiser, TinyJoint, enumerate_states, state_index
from unmask.processes.masked import Masked
from unmask.processes.uniform import Uniform
from unmask.samplers.ancestral import Ancestral

MASKED, UNIFORM = Masked(vocab_size=4, mask_id=3), Uniform(vocab_size=3)
CASES = pytest.mark.parametrize(
    ("process", "named"), [(MASKED, None), (MASKED, MASKED), (UNIFORM, UNIFORM)], ids=["masked", "named", "uniform"]
)


def guided(noise: DiscreteProcess, *, seed: int = 5, **options: Any) -> ClassifierGuided:
    world = LabelledWorld(seed=seed)
    return ClassifierGuided(
        world.joint.denoiser(noise), partial(world.classifier, noise), conditions=("label",), **options
    )


class TableGuided(ClassifierGuided):
    """With the classifier's answers looked up, since the contract asks 200,000 rows."""

    def __init__(self, process: DiscreteProcess, named: Any) -> None:
        world = LabelledWorld(seed=5)
        states = enumerate_states(process.vocab_size, 3)

        def look_up(x: Tensor, t: Tensor) -> Tensor:
            out = torch.zeros(len(x), dtype=torch.float64)
            for now in t.unique():
                label = torch.ones(len(states), dtype=torch.int64)
                table = world.classifier(process, states, now.expand(len(states)), label=label)
                out[t == now] = table[state_index(x[t == now], process.vocab_size)]
            return out

        super().__init__(world.joint.denoiser(process), look_up, process=named, batch_size=1 << 20)


class TestMasked(SamplerContract):
    named: Any = None

    def make(self) -> tuple[Sampler, DiscreteProcess]:
        return Ancestral(process=MASKED), MASKED

    def model(self) -> tuple[Sampler, DiscreteProcess, Denoiser]:
        return *self.make(), TableGuided(self.make()[1], self.named)


@CASES
def test_with_exact_parts_it_is_the_exact_conditional_model(process: DiscreteProcess, named: Any) -> None:
    """gamma = 1: p(x_0 | x_t, y), at every state and time, with a label of each row."""
    model, world = guided(process, process=named), LabelledWorld(seed=5)
    xt = enumerate_states(process.vocab_size, 3)
    for t in (0.05, 0.5, 0.95):
        tt = time(t).expand(len(xt))
        for label in (0, 1):
            got = model(xt, tt, label=torch.full((len(xt),), label)).log_probs().exp()
            wanted = world.conditionals[label].conditionals(process, xt, tt)
            torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)
    label = torch.arange(len(xt)) % 2
    mixed = model(xt, tt, label=label).log_probs().exp()
    wanted = torch.stack([each.conditionals(process, xt, tt) for each in world.conditionals])
    torch.testing.assert_close(mixed, wanted[label, torch.arange(len(xt))], atol=1e-9, rtol=0)


def test_other_noise_without_its_name_is_not_exact() -> None:
    model, world = guided(UNIFORM), LabelledWorld(seed=5)
    xt = enumerate_states(3, 3)
    tt = time(0.5).expand(27)
    got = model(xt, tt, label=torch.zeros(27, dtype=torch.int64)).log_probs().exp()
    assert float((got - world.conditionals[0].conditionals(UNIFORM, xt, tt)).abs().max()) > 0.05


@CASES
def test_samples_converge_to_the_conditional_law_at_first_order(process: DiscreteProcess, named: Any) -> None:
    world, sampler = LabelledWorld(seed=5, length=2), Ancestral(process=process)
    model = ClassifierGuided(
        world.joint.denoiser(process), partial(world.classifier, process), conditions=("label",), process=named
    )
    target = world.conditionals[0].as_states(process)
    errors = [
        total_variation(
            world.joint.sampler_law(sampler.transition, Given(model, label=0), process, time_grid(n)), target
        )
        for n in (8, 32)
    ]
    assert errors[0] > 0.005, "the world is too easy to see an error"
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)
    unguided = total_variation(world.joint.as_states(process), target)
    assert errors[1] < 0.04 * unguided


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_the_property_shows_more_and_more_as_gamma_grows(process: Any, seed: int) -> None:
    world, agreement = LabelledWorld(seed=seed), []
    named = process if process is UNIFORM else None
    for gamma in (0.0, 1.0, 2.0, 4.0):
        model = Given(guided(process, seed=seed, guidance_scale=gamma, process=named), label=0)
        law = world.joint.sampler_law(Ancestral(process=process).transition, model, process, time_grid(4))
        agreement.append(world.agreement(law, process, 0))
    assert all(b > a for a, b in pairwise(agreement)), agreement


# -- first order ---------------------------------------------------------------------------------------------------


def soft(world: LabelledWorld, process: DiscreteProcess, strength: float) -> tuple[Any, Any]:
    """log p(y | x), of tokens and of one-hot vectors: a sum over sites and, times `strength`, over pairs."""
    v = process.vocab_size
    single, pair = Rng(1).normal((3, v)), strength * Rng(2).normal((3, v, 3, v))

    def of_vectors(x: Tensor, t: Tensor) -> Tensor:
        x = x.double()
        score = torch.einsum("nlv,lv->n", x, single) + torch.einsum("nlv,lvkw,nkw->n", x, pair, x)
        return score

    def of_tokens(x: Tensor, t: Tensor) -> Tensor:
        return of_vectors(torch.nn.functional.one_hot(x, v), t)

    return of_tokens, of_vectors


def test_first_order_is_exact_for_a_linear_log_probability_and_errs_for_another() -> None:
    world, xt = LabelledWorld(seed=5), enumerate_states(4, 3)
    tt, errors = time(0.5).expand(len(xt)), []
    for strength in (0.0, 0.1, 0.5):
        of_tokens, of_vectors = soft(world, MASKED, strength)
        model = world.joint.denoiser(MASKED)
        exact = ClassifierGuided(model, of_tokens)(xt, tt).log_probs().exp()
        taylor = ClassifierGuided(model, of_vectors, first_order=True)(xt, tt).log_probs().exp()
        errors.append(float((exact - taylor).abs().sum(-1).max() / 2))
    assert errors[0] < 1e-6
    assert 0.02 < errors[1] < errors[2]


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_an_additive_reward_tilts_independent_sites_exactly(gamma: float, num_steps: int) -> None:
    """p(x) exp(gamma r(x)) / Z with r a sum over sites, whatever the number of steps."""
    sites = Rng(4).normal((3, 3)).exp()
    world = TinyJoint(torch.einsum("a,b,c->abc", *sites))
    of_tokens, of_vectors = soft(LabelledWorld(seed=5), MASKED, 0.0)
    model = ClassifierGuided(world.denoiser(MASKED), of_vectors, first_order=True, guidance_scale=gamma)
    law = world.sampler_law(Ancestral(process=MASKED).transition, model, MASKED, time_grid(num_steps))
    tilted = world.probs * (gamma * of_tokens(world.sequences, time(0.0).expand(27))).exp()
    assert total_variation(world.probs, tilted / tilted.sum()) > 0.2, "the reward has to change something"
    torch.testing.assert_close(law[state_index(world.sequences, 4)], tilted / tilted.sum(), atol=1e-6, rtol=0)


def test_first_order_asks_once_and_works_without_gradients() -> None:
    calls = 0
    _, of_vectors = soft(LabelledWorld(seed=5), MASKED, 0.5)

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return of_vectors(x, t)

    model = ClassifierGuided(LabelledWorld(seed=5).joint.denoiser(MASKED), counted, first_order=True)
    with torch.no_grad():
        law = model(torch.full((4, 3), 3), time(0.5).expand(4))
        law.log_probs()
        law.sample(Rng(0))
    assert calls == 1


# -- work ------------------------------------------------------------------------------------------------------------


def test_only_possible_values_of_sites_that_are_asked_about_are_tried() -> None:
    met: list[Tensor] = []

    def classifier(x: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        met.append(torch.cat((x, label[:, None], (10 * t.round(decimals=1))[:, None].long()), 1))
        return torch.zeros(len(x))

    model = ClassifierGuided(PaddedChain(4), classifier, conditions=("label",), batch_size=2)
    x = torch.tensor([[3, 1, 3], [0, 1, 2], [3, 3, 2]])
    where = torch.tensor([[False, True, True], [True, True, True], [True, False, False]])
    law = ask(model, x, time(0.2, 0.3, 0.4), label=torch.tensor([7, 8, 9]), sites=where)
    law.log_probs(where)
    assert [len(part) for part in met] == [2, 2, 2]
    tried = torch.cat(met).tolist()
    assert tried == [[3, 1, v, 7, 2] for v in range(3)] + [[v, 3, 2, 9, 4] for v in range(3)]


def test_scale_zero_is_the_model_and_asks_nobody() -> None:
    def classifier(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("asked")

    inner = PaddedChain(4)
    model, xt, t = ClassifierGuided(inner, classifier, guidance_scale=0.0), torch.full((2, 3), 3), time(0.5, 0.5)
    assert torch.equal(model(xt, t).log_probs(), inner(xt, t).log_probs())


def test_padding_is_told_to_both() -> None:
    """Ragged rows: the classifier sees the mask of each changed canvas's own row."""

    def classifier(x: Tensor, t: Tensor, *, attention_mask: Tensor) -> Tensor:
        return 0.7 * (x * attention_mask).sum(1).double()

    model = ClassifierGuided(PaddedChain(4), classifier)
    mask = torch.tensor([[True] * 5, [False, False, True, True, True], [True, True, False, False, False]])
    together = sample(
        Ancestral(process=MASKED),
        model,
        torch.zeros(3, 5, dtype=torch.int64),
        num_steps=5,
        rng=Rng(1),
        attention_mask=mask,
    )
    for row, length in enumerate((5, 3, 2)):
        alone = sample(
            Ancestral(process=MASKED),
            model,
            torch.zeros(1, length, dtype=torch.int64),
            num_steps=5,
            rng=Rng(1).rows(torch.tensor([row])),
            attention_mask=torch.ones(1, length, dtype=torch.bool),
        )
        assert torch.equal(together[row][mask[row]], alone[0])


def test_the_last_moments_and_a_careless_classifier_give_no_nan() -> None:
    """The inverse of the noise is taken at t = 1, where nothing is left to invert, and at almost no noise."""
    table = TableDenoiser(lambda xt, t: torch.full((*xt.shape, 3), 1 / 3).double())
    model = ClassifierGuided(
        table, lambda x, t: torch.log_softmax(x.double().sum(1), 0) - 50, process=UNIFORM, guidance_scale=3.0
    )
    xt = enumerate_states(3, 3)
    for t in (1e-12, 1 - 1e-12, 1.0):
        probs = model(xt, time(t).expand(27)).log_probs().exp()
        assert not bool(probs.isnan().any())
        torch.testing.assert_close(probs.sum(-1), torch.ones(27, 3).double())


def test_bad_settings_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="guidance_scale=nan"):
        guided(MASKED, guidance_scale=math.nan)
    with pytest.raises(ValueError, match="batch_size=0"):
        guided(MASKED, batch_size=0)
