"""The n-gram: exactly normalised, a true cross-entropy, and consistent with the entropy rate of a known source."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.shakespeare import load_shakespeare_split
from unmask.metrics.ngram import UNICODE_SIZE, NGram

LETTERS = "abcd"


@given(
    texts=st.lists(st.text(alphabet=LETTERS, max_size=40), min_size=1, max_size=4).filter(any),
    context=st.text(alphabet=LETTERS + "?", max_size=6),
    order=st.integers(1, 5),
)
@settings(deadline=None)
def test_probabilities_sum_to_one(texts: list[str], context: str, order: int) -> None:
    model = NGram(order, num_symbols=10).fit(texts)
    met = sorted(set("".join(texts)))
    total = sum(2 ** model.log2_probs(context + c)[-1] for c in met)
    unknown = 2 ** model.log2_probs(context + "!")[-1]
    assert total + (10 - len(met)) * unknown == pytest.approx(1, abs=1e-12)


def _witten_bell(texts: list[str], order: int, symbols: int, history: str, character: str) -> float:
    """The recursion of the docstring, counted by hand."""
    value = 1 / symbols
    for k in range(order):
        context = ("^" * (order - 1) + history)[len(history) + order - 1 - k :]
        after = []
        for text in texts:
            padded = "^" * (order - 1) + text
            after += [padded[i] for i in range(order - 1, len(padded)) if padded[i - k : i] == context]
        if after:
            value = (after.count(character) + len(set(after)) * value) / (len(after) + len(set(after)))
    return value


@given(
    texts=st.lists(st.text(alphabet=LETTERS, max_size=25), min_size=1, max_size=4).filter(any),
    text=st.text(alphabet=LETTERS + "?", min_size=1, max_size=10),
    order=st.integers(1, 4),
)
@settings(deadline=None)
def test_equals_the_recursion_counted_by_hand(texts: list[str], text: str, order: int) -> None:
    got = NGram(order, num_symbols=50).fit(texts).log2_probs(text)
    expected = [math.log2(_witten_bell(texts, order, 50, text[:i], c)) for i, c in enumerate(text)]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def _markov(length: int, seed: int) -> tuple[str, float]:
    """A text of a second-order chain on three letters, and its entropy rate in bits (by enumeration)."""
    rng = np.random.default_rng(7)
    table = rng.dirichlet(np.full(3, 0.5), size=(3, 3))
    transition = np.zeros((9, 9))
    for i, j, k in np.ndindex(3, 3, 3):
        transition[3 * i + j, 3 * j + k] = table[i, j, k]
    stationary = np.linalg.matrix_power(transition, 1000)[0]
    rate = -float((stationary.reshape(3, 3, 1) * table * np.log2(table)).sum())
    state, letters = [0, 0], []
    for u in np.random.default_rng(seed).random(length):
        letters.append(int((table[state[0], state[1]].cumsum() < u).sum().clip(max=2)))
        state = [state[1], letters[-1]]
    return "".join("xyz"[i] for i in letters), rate


def test_approaches_the_entropy_rate_of_a_known_source() -> None:
    (train, rate), (test, _) = _markov(100_000, 1), _markov(50_000, 2)
    values = {}
    for order in (1, 2, 3, 5):
        value, error = NGram(order).fit([train]).bits_per_character([test])
        assert value > rate - 4 * error
        values[order] = value
    assert values[3] == pytest.approx(rate, abs=4 * error + 0.002)
    assert values[5] < rate + 4 * error + 0.02
    assert values[1] > values[2] > values[3] + 0.02


def test_standard_error_has_the_right_size() -> None:
    rng = np.random.default_rng(0)
    model = NGram(1).fit(["a" * 900 + "b" * 100])
    draws = [model.bits_per_character(["".join("ab"[int(u < 0.1)] for u in rng.random(20_500))]) for _ in range(60)]
    values, errors = np.array(draws).T
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.3)
    value, error = model.bits_per_character(["ab"])
    assert value > 0
    assert math.isnan(error)


def test_value_is_total_bits_over_total_characters() -> None:
    model = NGram(3).fit(["the cat sat on the mat", "the end"])
    texts = ["the hat", "", "a cat sat? é"]
    expected = -sum(model.log2_probs(text).sum() for text in texts) / sum(map(len, texts))
    assert model.bits_per_character(texts)[0] == pytest.approx(expected, rel=1e-12)


def test_unknown_characters_cost_a_finite_price() -> None:
    model = NGram(4).fit(["abc" * 10])
    losses = -model.log2_probs("abc日abc")
    assert np.isfinite(losses).all()
    assert math.log2(UNICODE_SIZE) < losses[3] < 40


def test_real_text_orders_and_speed() -> None:
    train, held_out = load_shakespeare_split()
    start = time.process_time()
    four, error = NGram(4).fit(train).bits_per_character(held_out)
    assert time.process_time() - start < 30  # about 4 s on an idle core
    one, _ = NGram(1).fit(train).bits_per_character(held_out)
    assert four == pytest.approx(2.5333, abs=1e-3)
    assert one == pytest.approx(4.7570, abs=1e-3)
    assert 0.005 < error < 0.03


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="order=0"):
        NGram(0)
    with pytest.raises(ValueError, match="3 distinct characters"):
        NGram(2, num_symbols=2).fit(["abc"])
    with pytest.raises(ValueError, match="0 distinct"):
        NGram(2).fit([""])
    with pytest.raises(ValueError, match="call fit first"):
        NGram(2).log2_probs("a")
    with pytest.raises(ValueError, match="no character"):
        NGram(2).fit(["a"]).bits_per_character([""])
