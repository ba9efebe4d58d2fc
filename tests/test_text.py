import math
import re

import pytest
import torch

from text_models import ALPHABET, constant_model, tiny_model
from unmask.errors import UserError
from unmask.processes.masked import Masked
from unmask.sampler import Sampler
from unmask.samplers.ancestral import Ancestral
from unmask.samplers.remdm import ReMDM, cap
from unmask.samplers.unmask import Unmask
from unmask.sampling import SamplingConfig, SamplingOptions
from unmask.select.left_to_right import left_to_right
from unmask.select.margin import margin
from unmask.select.threshold import threshold
from unmask.select.top_probability import top_probability
from unmask.text import TextModel


@pytest.fixture(scope="module")
def model() -> TextModel:
    return tiny_model()


# -- constraints -------------------------------------------------------------------------------------------------------


def test_new_tokens_match_the_expression_and_may_end(model: TextModel) -> None:
    texts = model.generate("to be", num_samples=6, length=12, num_steps=5, regex="[ab ]+[.]")
    assert all(re.fullmatch("to be[ab ]+[.]", text) for text in texts)
    assert len(set(texts)) > 1
    assert texts[:2] == model.generate("to be", num_samples=2, length=12, num_steps=5, regex="[ab ]+[.]", batch_size=1)
    ends = constant_model({"[EOS]": 0.5, "a": 0.3}).generate(num_samples=20, length=8, num_steps=4, regex="a+")
    assert {"a", "aa"} < set(ends)


def test_an_infilled_text_matches_as_a_whole(model: TextModel) -> None:
    texts = model.infills("a [[4]] b", num_samples=4, regex="a [xyz]+ b")
    assert all(re.fullmatch("a [xyz]{4} b", text) for text in texts)


def test_constraints_that_cannot_be_met_are_told(model: TextModel) -> None:
    with pytest.raises(UserError, match="no word of the language fits row 0: 3 sites"):
        model.generate(length=3, regex="[a-z]{5}")
    with pytest.raises(UserError, match="wanted one of them"):
        model.generate(length=3, regex="a", json_schema="{}")
    with pytest.raises(UserError, match="autoregressive"):
        tiny_model(causal=True).generate(length=3, regex="a")


# -- generate ----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(model: TextModel) -> None:
    first = model.generate(num_samples=3, length=20, num_steps=8, seed=5)
    assert first == model.generate(num_samples=3, length=20, num_steps=8, seed=5)
    assert not set(first) & set(model.generate(num_samples=3, length=20, num_steps=8, seed=6))
    assert len(set(first)) == 3


@pytest.mark.parametrize("causal", [False, True])
def test_a_sample_does_not_depend_on_its_batch(causal: bool) -> None:
    model = tiny_model(causal=causal)
    together = model.generate("to be", num_samples=5, length=20, num_steps=8, seed=1)
    assert together == model.generate("to be", num_samples=5, length=20, num_steps=8, seed=1, batch_size=1)
    assert together == model.generate("to be", num_samples=5, length=20, num_steps=8, seed=1, batch_size=3)
    assert together[:2] == model.generate("to be", num_samples=2, length=20, num_steps=8, seed=1)


def test_prompts_of_other_rows_and_their_padding_change_nothing(model: TextModel) -> None:
    short = model.generate(["a", "hello there"], length=12, num_steps=6, seed=3)
    long = model.generate(["a rather long prompt", "hello there"], length=12, num_steps=6, seed=3)
    assert short[1] == long[1]
    assert short[0] != long[0]
    assert model.generate(["a", "hello there"], length=12, num_steps=6, seed=3, batch_size=1) == short


def test_every_sample_begins_with_the_prompt_and_has_the_length_asked_for(model: TextModel) -> None:
    without_end = constant_model({"a": 0.5, "b": 0.49})
    texts = without_end.generate("it is", num_samples=4, length=7, num_steps=3)
    assert all(text.startswith("it is") and len(text) == 12 for text in texts)
    assert all(text.startswith("it is") for text in model.generate("it is", num_samples=4))


def test_a_text_ends_before_the_first_end_mark_and_padding_is_never_drawn() -> None:
    model = constant_model({"[EOS]": 0.3, "a": 0.3, "[PAD]": 0.39})
    texts = model.generate("x", num_samples=30, length=15, seed=2)
    assert len({len(text) for text in texts}) > 3
    final = list(model.stream("x", num_samples=30, length=15, seed=2))[-1].canvas
    assert isinstance(final, torch.Tensor)
    eos = model.tokenizer.eos_id
    assert not (final == model.tokenizer.pad_id).any()
    assert not (final == model.tokenizer.mask_id).any()
    for row, text in zip(final.tolist(), texts, strict=True):
        assert len(text) == (row.index(eos) if eos in row else len(row))


def test_finish_tells_why_a_text_ends_and_skips_a_start_mark(model: TextModel) -> None:
    eos, ids = model.tokenizer.eos_id, model.tokenizer.encode("abc")
    assert model.finish(torch.tensor([*ids, eos, *ids])) == ("abc", "stop")
    assert model.finish(torch.tensor([eos, *ids])) == ("abc", "length")
    assert model.finish(torch.tensor([eos, eos, *ids])) == ("", "stop")


def test_stream_ends_where_generate_does_and_counts_its_steps(model: TextModel) -> None:
    config = SamplingConfig(num_steps=7, seed=4)
    steps = list(model.stream("ab", num_samples=2, length=10, num_steps=7, seed=4))
    assert len(steps) == 7 == model.num_steps(model.canvas("ab", num_samples=2, length=10), config)
    final = steps[-1].canvas
    assert isinstance(final, torch.Tensor)
    texts = [model.finish(row)[0] for row in final]
    assert texts == model.generate("ab", num_samples=2, length=10, num_steps=7, seed=4)


def test_temperature_zero_takes_the_most_probable_token() -> None:
    model = constant_model({"q": 0.2, "r": 0.1})
    assert model.generate(length=9, temperature=0.0) == ["q" * 9]
    assert set(model.generate(length=16, top_k=2, seed=1)[0]) == {"q", "r"}
    assert model.generate(length=16, top_p=0.1) == ["q" * 16]


def test_a_sampler_of_ones_own_is_used(model: TextModel) -> None:
    greedy = Ancestral(process=model.checkpoint.process, temperature=0.0)
    assert model.generate(length=9, sampler=greedy) == model.generate(length=9, temperature=0.0)
    with pytest.raises(UserError, match="belong in it"):
        model.generate(length=9, sampler=greedy, temperature=0.5)


def test_strategies_are_the_samplers_of_that_name(model: TextModel) -> None:
    process = model.checkpoint.process
    assert isinstance(process, Masked)
    cases: list[tuple[SamplingOptions, Sampler]] = [
        ({"order": "margin"}, Unmask(process=process, order=margin())),
        ({"order": "left-to-right", "temperature": 0.5}, Unmask(process=process, order=left_to_right, temperature=0.5)),
        ({"threshold": 0.05}, Unmask(process=process, order=top_probability(), quota=threshold(0.05))),
        ({"remask": 0.1, "top_k": 5}, ReMDM(process=process, sigma=cap(0.1), top_k=5)),
    ]
    for options, sampler in cases:
        same = model.generate(length=12, num_steps=12, sampler=sampler)
        assert model.generate(length=12, num_steps=12, **options) == same
        assert model.generate(length=12, num_steps=12) != same
    one_by_one = [int(step.newly_set.sum()) for step in model.stream(length=12, order="entropy", num_steps=12)]  # type: ignore[union-attr]
    assert sum(one_by_one) == 12
    canvas = model.canvas("", length=20)
    assert model.num_steps(canvas, SamplingConfig(threshold=0.9)) == 20


def test_strategies_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match="order='best', wanted one of random, left-to-right"):
        SamplingConfig(order="best")
    with pytest.raises(UserError, match="threshold=0"):
        SamplingConfig(threshold=0.0)
    with pytest.raises(UserError, match="leave one of them out"):
        SamplingConfig(order="margin", remask=0.1)
    with pytest.raises(UserError, match="do not go with an order"):
        SamplingConfig(threshold=0.9, top_p=0.9)
    with pytest.raises(UserError, match="no order, threshold or remask"):
        tiny_model(causal=True).generate(length=4, order="margin")


def test_blocks_are_filled_from_left_to_right(model: TextModel) -> None:
    canvas = model.canvas("abcd", length=12)
    config = SamplingConfig(num_steps=6, block_size=4)  # 12 open sites in 3 blocks of 2 steps; the given one costs none
    steps = list(model.denoise(canvas, config))
    assert len(steps) == model.num_steps(canvas, config) == 6
    for index, step in enumerate(steps):
        masked = (step.canvas == model.tokenizer.mask_id)[0].nonzero().flatten()  # type: ignore[index]
        begin = 4 + 4 * (index // 2)
        assert set(masked.tolist()) >= set(range(begin + 4, 16))
        assert not set(masked.tolist()) & set(range(begin))


def test_an_autoregressive_model_writes_one_token_after_another() -> None:
    model = tiny_model(causal=True)
    steps = list(model.stream("ab", length=6))
    assert [int(step.newly_set.sum()) for step in steps] == [1] * 6  # type: ignore[union-attr]
    rolled = model.tokenizer.encode("ab")
    for _ in range(6):
        x = torch.tensor([[*rolled, model.tokenizer.mask_id]])
        law = model.denoiser(x, torch.zeros(1, dtype=torch.float64))
        log_probs = law.log_probs()[0, -1].clone()  # type: ignore[attr-defined]
        log_probs[model.tokenizer.pad_id] = -torch.inf
        rolled.append(int(log_probs.argmax()))
    final = list(model.stream("ab", length=6, temperature=0.0))[-1].canvas
    assert isinstance(final, torch.Tensor)
    assert final[0].tolist() == rolled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a" * 32}, "prompt longer than the context: its 32 tokens and 1 new ones exceed the 32"),
        ({"prompt": "a" * 20, "length": 13}, "its 20 tokens and 13 new ones exceed the 32"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"length": 0}, "length=0"),
        ({"prompt": ["a", "b"], "num_samples": 3}, "2 prompts but num_samples=3"),
        ({"num_steps": 0}, "num_steps=0, wanted at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"block_size": 0}, "block_size=0"),
        ({"prompt": "ß"}, "is not one of the 31 characters"),
    ],
)
def test_bad_requests_are_refused_by_name(model: TextModel, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        model.generate(**arguments)


# -- infill ------------------------------------------------------------------------------------------------------------


def test_infill_keeps_the_given_text_and_fills_the_lengths_asked_for(model: TextModel) -> None:
    texts = model.infills("so [[4]] it, [[2-6]].", num_samples=40, seed=1)
    matches = [re.fullmatch(r"so (.{4}) it, (.{2,6})\.", text, re.DOTALL) for text in texts]
    assert all(matches)
    assert {len(match[2]) for match in matches if match} == {2, 3, 4, 5, 6}


def test_infill_is_the_same_alone_and_in_a_batch(model: TextModel) -> None:
    pattern = "so [[4]] it, [[0-9]]."
    many = model.infills(pattern, num_samples=6, seed=2)
    assert len({len(text) for text in many}) > 1
    assert many[0] == model.infill(pattern, seed=2)
    assert many == model.infills(pattern, num_samples=6, seed=2, batch_size=1)


def test_an_end_mark_never_cuts_an_infilled_text() -> None:
    model = constant_model({"[EOS]": 0.9, "[PAD]": 0.05})
    assert len(model.infill("ab[[5]]cd")) == 9


def test_infill_sees_both_sides_of_a_gap(model: TextModel) -> None:
    left = {model.infill(f"{letter} [[3]] end", temperature=0.0)[2:5] for letter in ALPHABET[:26]}
    right = {model.infill(f"end [[3]] {letter}", temperature=0.0)[4:7] for letter in ALPHABET[:26]}
    assert len(left) > 1
    assert len(right) > 1


def test_a_pattern_of_empty_gaps_only_still_gives_a_text(model: TextModel) -> None:
    assert all(len(text) in (1, 0) for text in model.infills("[[0-1]]", num_samples=8))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("no gap", "found no gap"),
        ("a [[x]]", "at character 3"),
        ("a [[1-40]]", "up to 42 tokens, this model holds 32"),
    ],
)
def test_bad_patterns_are_refused(model: TextModel, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        model.infill(pattern)


def test_an_autoregressive_model_refuses_to_infill() -> None:
    with pytest.raises(UserError, match="sees the left side only"):
        tiny_model(causal=True).infill("a [[3]] b")


# -- score -------------------------------------------------------------------------------------------------------------


def test_a_constant_law_costs_what_its_probabilities_say() -> None:
    model = constant_model({"a": 0.25, "b": 0.5})
    scores = model.score(["aaaa", "b" * 100])
    four, hundred = scores.documents
    assert (four.num_tokens, four.num_characters) == (4, 4)
    assert four.bits_per_token == pytest.approx(2.0)
    assert hundred.bits_per_character == pytest.approx(1.0)
    assert hundred.bits_per_character_se == pytest.approx(0.0, abs=1e-6)
    assert scores.total.bits_per_token == pytest.approx((4 * 2 + 100 * 1) / 104)
    assert scores.bound


def test_the_estimate_lies_within_its_standard_error_and_the_error_shrinks_with_draws(model: TextModel) -> None:
    text = "what is this thing, to be or not"
    few, many, again = (model.score([text] * 16, num_draws=n, seed=n).total for n in (9, 48, 49))
    for some in (few, many):
        error = math.hypot(some.bits_per_token_se, again.bits_per_token_se)
        assert abs(some.bits_per_token - again.bits_per_token) < 4 * error
    assert 0 < many.bits_per_token_se < few.bits_per_token_se / 1.5


def test_the_spread_is_over_windows() -> None:
    scores = constant_model({"a": 0.25, "b": 0.5}).score(["a" * 16 + "b" * 16, "a" * 5])
    long, short = scores.documents
    assert long.bits_per_character_spread == pytest.approx(0.5, rel=1e-4)  # windows of 2 bits and of 1 bit
    assert short.bits_per_character_spread is None
    assert long.bits_per_character_se == pytest.approx(0.0, abs=1e-6)


def test_an_autoregressive_score_is_exact_and_left_to_right() -> None:
    model = tiny_model(causal=True)
    scores = model.score(["to be or not"])
    x = torch.tensor([model.tokenizer.encode("to be or not")])
    exact = model.denoiser(x, torch.zeros(1, dtype=torch.float64)).log_prob(x).item()
    assert scores.total.nats == pytest.approx(-exact, rel=1e-5)
    assert scores.total.nats_se == 0
    assert not scores.bound


def test_windows_are_consecutive_and_batches_and_companions_change_nothing(model: TextModel) -> None:
    texts = ["what is this thing, " * 5, "brief"]
    together = model.score(texts, num_draws=4, seed=3)
    apart = model.score(texts, num_draws=4, seed=3, batch_size=1)
    alone = model.score(texts[:1], num_draws=4, seed=3)
    assert together.total.nats == pytest.approx(apart.total.nats, rel=1e-5)
    assert together.documents[0].nats == pytest.approx(alone.total.nats, rel=1e-5)
    assert together.documents[0].nats_se == pytest.approx(alone.total.nats_se, rel=1e-3)
    twin = tiny_model(causal=True)
    windows = [texts[0][i : i + 32] for i in range(0, 100, 32)]
    parts = sum(score.nats for score in twin.score(windows).documents)
    assert twin.score(texts[:1]).total.nats == pytest.approx(parts, rel=1e-5)


def test_progress_counts_up_to_the_end(model: TextModel) -> None:
    seen: list[tuple[int, int]] = []
    model.score(["abc" * 40], num_draws=3, batch_size=2, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 6) for i in range(6)]


@pytest.mark.parametrize(
    ("texts", "draws", "message"),
    [([], 4, "got no text"), (["a", ""], 4, "text number 2 is empty"), (["a"], 1, "num_draws=1")],
)
def test_nothing_to_score_is_refused(model: TextModel, texts: list[str], draws: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model.score(texts, num_draws=draws)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same_model(model: TextModel, tmp_path) -> None:
    model.save_pretrained(tmp_path / "model")
    again = TextModel.from_pretrained(tmp_path / "model")
    assert again.generate(length=20, seed=9) == model.generate(length=20, seed=9)
    assert again.context == 32


def test_a_missing_model_is_told(tmp_path) -> None:
    with pytest.raises(UserError):
        TextModel.from_pretrained(tmp_path / "nothing")
