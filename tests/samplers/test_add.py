"""Labels and tokens from noisy one-hot vectors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts import PaddedVectors, StateContract
from unmask import Categorical, Denoiser, Dirac, Law, Normal, Rng, Sampler, State, sample
from unmask.data.digits import load_digits_split
from unmask.denoisers.embedded import EmbeddedDenoiser
from unmask.losses.add import OneHotCE
from unmask.ops import one_hot
from unmask.oracles.statistics import chi_square, total_variation
from unmask.processes.gaussian import Gaussian
from unmask.samplers.add import OneHotSampler
from unmask.samplers.ancestral import Ancestral

GAUSSIAN, PMF = Gaussian(dtype=torch.float64), torch.tensor([0.4, 0.3, 0.2, 0.1]).double()


class Exact(Denoiser):
    """The posterior of one label of known law."""

    def forward(self, xt: State, t: Tensor, **cond: object) -> Law:
        assert isinstance(xt, Tensor)
        early = t.clamp(max=1 - 1e-9)[:, None, None]
        ratio = GAUSSIAN.schedule.alpha(early) / GAUSSIAN.schedule.sigma(early).square()
        return Categorical.from_logits(PMF.log() + ratio * xt)


def counts(encoding: str, steps: int, n: int = 20_000) -> Tensor:
    sampler = OneHotSampler(process=GAUSSIAN, encoding=encoding)
    out = sample(sampler, Exact(), (n, 1, 4), num_steps=steps, rng=Rng(0))
    assert isinstance(out, Tensor)
    return out.argmax(-1).flatten().bincount(minlength=4)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_draws_give_the_labels_marginals_in_any_number_of_steps(steps: int) -> None:
    assert chi_square(counts("draw", steps), PMF) > 1e-7


def test_softmax_converges_and_argmax_leans_to_the_mode() -> None:
    far = [total_variation(counts("softmax", steps) / 20_000, PMF) for steps in (1, 4, 24)]
    assert far[0] == pytest.approx(0.6)
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.025
    leaning = counts("argmax", 24) / 20_000
    assert float(leaning[0]) > 0.47
    assert float(leaning[3]) < 0.08


@pytest.mark.parametrize("encoding", ["draw", "argmax", "softmax"])
def test_the_head_is_asked_once_a_site_and_step(encoding: str) -> None:
    class Net(nn.Module):
        rows_seen = 0

        def forward(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
            return x

        def head(self, hidden: Tensor) -> Tensor:
            self.rows_seen += len(hidden)
            return hidden

    net = Net()
    denoiser = EmbeddedDenoiser(net, vocab_size=4)
    sample(OneHotSampler(process=GAUSSIAN, encoding=encoding), denoiser, (3, 5, 4), num_steps=2, rng=Rng(0))
    assert net.rows_seen == 2 * 3 * 5


class Reader(nn.Module):
    """Two layers over features, a noisy one-hot label and the time."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.up, self.middle, self.head = nn.Linear(75, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor, t: Tensor, *, features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = torch.cat([features, x.float().flatten(1), t[:, None].float()], 1)
        return F.gelu(self.middle(F.gelu(self.up(h))))[:, None]

    def point(self, features: Tensor, x: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """The head's outputs (n, 1, 10); without a noisy label those of a plain classifier."""
        x = torch.zeros(len(features), 1, 10) if x is None else x
        t = torch.ones(len(features)) if t is None else t
        logits: Tensor = self.head(self(x, t, features=features))
        return logits


def trained(kind: str, seed: int) -> Reader:
    net, process, steps = Reader(seed), Gaussian(), 200
    (images, labels), _ = load_digits_split()
    loss, denoiser = OneHotCE(process=process, vocab_size=10), EmbeddedDenoiser(net, vocab_size=10)
    optimizer = torch.optim.Adam(net.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, 2 * (1 - step / steps))
        rng = Rng(seed).fold(step).rows(torch.arange(64) + 64 * step)
        pick = (rng.fold(1).uniform((64,)) * len(images)).long()
        features, label = images[pick] / 16.0, labels[pick][:, None]
        if kind == "diffusion":
            value = loss(denoiser, label, rng, features=features).mean()
        elif kind == "classifier":
            value = F.cross_entropy(net.point(features)[:, 0], label[:, 0])
        else:
            clean, t = one_hot(label, 10, torch.float32), rng.fold(2).uniform((64,))
            value = (net.point(features, process.corrupt(clean, t, rng), t) - clean).square().sum((1, 2)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return net


class Regressed(Denoiser):
    """The head's outputs taken for the one-hot vector itself."""

    def __init__(self, net: Reader) -> None:
        super().__init__()
        self.net = net

    def forward(self, xt: State, t: Tensor, *, features: Tensor, **cond: object) -> Law:
        assert isinstance(xt, Tensor)
        return Dirac(self.net.point(features, xt, t))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_labels_of_digits_are_as_right_as_a_classifiers(seed: int) -> None:
    """300 held-out images: the standard error of an accuracy of 0.96 is 0.011. The squared error is no worse here."""
    _, (images, labels) = load_digits_split()
    features, process = images / 16.0, Gaussian()
    with torch.no_grad():
        plain = trained_accuracy(trained_on("classifier", seed).point(features), labels)
        one_shot = OneHotSampler(process=process, encoding="argmax")
        diffusion = EmbeddedDenoiser(trained_on("diffusion", seed), vocab_size=10)
        labelled = sample(one_shot, diffusion, (300, 1, 10), num_steps=4, rng=Rng(5), features=features)
        squared = Regressed(trained_on("squared", seed))
        regressed = sample(
            Ancestral(process=process), squared, (300, 1, 10), num_steps=4, rng=Rng(5), features=features
        )
    found, other = trained_accuracy(labelled, labels), trained_accuracy(regressed, labels)
    print(f"seed {seed}: classifier {plain:.3f}, cross-entropy {found:.3f}, squared error {other:.3f}")
    assert found > 0.92
    assert abs(found - plain) < 0.04
    assert abs(found - other) < 0.04


def trained_on(kind: str, seed: int) -> Reader:
    with torch.enable_grad():
        return trained(kind, seed)


def trained_accuracy(scores: State, labels: Tensor) -> float:
    assert isinstance(scores, Tensor)
    return float((scores.argmax(-1).flatten() == labels).double().mean())


class TestContract(StateContract):
    def make(self) -> tuple[Sampler, Denoiser]:
        return OneHotSampler(process=GAUSSIAN, encoding="draw"), PaddedVectors(3)

    def shape(self, rows: int, length: int) -> tuple[int, ...]:
        return (rows, length, 3)


def test_ends_on_one_hot_vectors() -> None:
    out = sample(OneHotSampler(process=GAUSSIAN, encoding="draw"), Exact(), (5, 2, 4), num_steps=3, rng=Rng(2))
    assert isinstance(out, Tensor)
    assert torch.equal(out.sum(-1), torch.ones(5, 2).double())
    assert torch.equal(out.amax(-1), torch.ones(5, 2).double())


def test_says_what_it_wants() -> None:
    with pytest.raises(ValueError, match="'argmax'"):
        OneHotSampler(process=GAUSSIAN, encoding="mean")

    class Point(Denoiser):
        def forward(self, xt: State, t: Tensor, **cond: object) -> Law:
            return Normal(torch.zeros(1, 1, 4), torch.ones(1))

    with pytest.raises(TypeError, match="Normal"):
        sample(OneHotSampler(process=GAUSSIAN), Point(), (1, 1, 4), num_steps=1, rng=Rng(0))
