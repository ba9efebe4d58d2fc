"""Every comparison runs at a tiny size without the peers, and tells finite numbers."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench` is imported from the repository, by this process and by those that it starts."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(ROOT)


def check(rows: list) -> None:
    assert rows
    for row in rows:
        assert math.isfinite(row.value), row
        assert row.value > 0, row


def test_overhead_and_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import generate, sampling_overhead
    from bench.peers import Peer

    from unmask.nn.transformer import Transformer, TransformerConfig

    guess = Peer(lambda logits_of, size, num_steps: logits_of(torch.zeros(size[:2], dtype=torch.int64)), exact=True)
    net = Transformer(TransformerConfig.tiny(vocab_size=5, max_length=8))
    for peers in ({}, {"guess": guess}):
        monkeypatch.setattr(sampling_overhead, "installed_peers", lambda peers=peers: peers)
        monkeypatch.setattr(generate, "installed_peers", lambda peers=peers: peers)
        check(sampling_overhead.compare((2, 8, 5), num_steps=2, peer_steps=2, repetitions=1, wanted=3))
        rows, rival = generate.compare(net, (1, 8, 5), num_steps=2, repetitions=1)
        check(rows)
        assert rival == next(iter(peers), None)


def test_ancestral_fills_every_mask_with_the_networks_law() -> None:
    from bench.sampling_overhead import FixedLogits, ancestral

    table = torch.full((2, 8, 5), -50.0)
    table[..., 3] = 0.0
    assert ancestral(FixedLogits(table), (2, 8, 5), 4).eq(3).all()


def test_calls_follow_the_formula() -> None:
    from bench.calls import compare, count

    # one token: exactly one step reveals it, and only this one calls
    assert count(num_steps=16, length=1, seed=0) == 1
    [row] = compare(num_steps=8, length=4, samples=50)
    assert row.verdict == "met"


def test_training_speed_and_products() -> None:
    from bench import training

    torch.manual_seed(0)
    net = training.Transformer(training.TransformerConfig.tiny(vocab_size=7, max_length=8))
    check(training.compare_speed(net, batch=2, repetitions=1, wanted=1.0))
    check(training.compare_products(net, batch=2, repetitions=1))


def test_products_are_those_of_the_step() -> None:
    from bench.training import _Products

    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with _Products() as seen:
        (a @ b).sum().backward()
    assert dict(seen.shapes) == {(1, 3, 4, 5): 1, (1, 3, 5, 4): 1, (1, 4, 3, 5): 1}


def test_the_usual_loss_is_an_estimate_of_the_bound() -> None:
    from bench.training import usual_loss

    from unmask.nn.transformer import Transformer, TransformerConfig

    net = Transformer(TransformerConfig.tiny(vocab_size=7, max_length=8))
    torch.nn.init.zeros_(net.head.weight)  # a uniform law costs log 7 at every token, whatever is masked
    torch.manual_seed(0)
    with torch.no_grad():
        mean = torch.stack([usual_loss(net, torch.zeros(64, 8, dtype=torch.int64), 6) for _ in range(40)]).mean()
    assert abs(float(mean) / math.log(7) - 1) < 0.1


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory needs the resource module")
def test_memory_and_startup() -> None:
    from bench import startup, training

    memory = training.peak_memory("unmask", 7, 1)
    assert memory["peak"] > memory["imports"] > 2**20
    check(startup.rows(repetitions=1))


def test_the_table_says_what_was_met() -> None:
    from bench.__main__ import page
    from bench.measure import Row

    rows = [
        Row(target_number="1", what="fast enough", value=4.0, bound=3, at_least=True),
        Row(target_number="4", what="too slow", value=1.7, bound=1.6, at_least=False),
        Row(target_number="6", what="for information", value=0.2, unit="s"),
    ]
    text = page(rows)
    assert "| 1 | fast enough | 4x | >= 3x | met |" in text
    assert "| 4 | too slow | 1.7x | <= 1.6x | missed |" in text
    assert "| 6 | for information | 0.2 s | - | - |" in text


def test_work_takes_turns_and_the_best_counts() -> None:
    from bench.measure import interleaved

    order: list[str] = []
    best = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == list("ababab")
    assert set(best) == {"a", "b"}
