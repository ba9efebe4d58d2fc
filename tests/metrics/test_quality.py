"""Sample quality against figures worked out by hand."""

import json
import math
from collections.abc import Sequence

import pytest

from unmask.data.tokenizers import Tokenizer
from unmask.errors import UserError
from unmask.metrics.judge import Verdict
from unmask.metrics.quality import QUALITY_VERSION, longest_run, sample_quality

TOKENIZER = Tokenizer.characters(["abcdefgh "])


class Teller:
    """Charges a nat for an a and three for anything else; its tokens are pairs of characters."""

    name = "teller"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def nats(self, texts: Sequence[str]) -> Verdict:
        self.texts += texts
        cost = sum(1.0 if c == "a" else 3.0 for text in texts for c in text)
        return Verdict(cost, sum(-(-len(text) // 2) for text in texts), sum(map(len, texts)))


def test_figures_by_hand() -> None:
    quality = sample_quality(["abab", "aaaaaa", "cd"], tokenizer=TOKENIZER)
    assert (quality.num_samples, quality.num_tokens, quality.num_characters) == (3, 12, 12)
    assert quality.unigram_entropy == pytest.approx((math.log(2) + 0 + math.log(2)) / 3)
    shares = (8 / 12, 2 / 12, 1 / 12, 1 / 12)
    assert quality.pooled_entropy == pytest.approx(-sum(p * math.log(p) for p in shares))
    # bigrams: ab ba ab | aa x5 | cd -> 9, of which ab, ba, aa, cd are distinct; 3-grams: aba bab | aaa x4
    assert quality.distinct == pytest.approx((4 / 12, 4 / 9, 3 / 6, 2 / 4))
    # 4-grams: abab | aaaa x3, two of which repeat
    assert quality.repetition == pytest.approx(2 / 4)
    assert quality.longest_run == 6
    assert quality.perplexity is None
    assert quality.version == QUALITY_VERSION == 1


def test_repeats_count_within_a_sample_only() -> None:
    apart = sample_quality(["abcd", "abcd"], tokenizer=TOKENIZER)
    assert apart.repetition == 0
    assert apart.distinct[3] == 0.5
    assert sample_quality(["abcdabcd"], tokenizer=TOKENIZER).repetition == pytest.approx(1 / 5)


def test_runs() -> None:
    assert [longest_run(ids) for ids in ([], [1], [1, 1, 2, 2, 2, 1], [3, 3, 3, 1])] == [0, 1, 3, 3]


def test_token_lists_lose_their_special_tokens_and_equal_texts() -> None:
    texts = ["abab", "", "dd d"]
    lists = [[TOKENIZER.eos_id, *TOKENIZER.encode(text), TOKENIZER.eos_id, TOKENIZER.pad_id] for text in texts]
    assert sample_quality(lists, tokenizer=TOKENIZER) == sample_quality(texts, tokenizer=TOKENIZER)


def test_empty_samples_are_counted() -> None:
    judge = Teller()
    quality = sample_quality(["", "  ", "ab", "ab"], tokenizer=TOKENIZER, judge=judge)
    assert quality.empty_rate == 0.5
    # the blank sample has a token, so it counts for the entropy; the empty one does not
    assert quality.unigram_entropy == pytest.approx(2 / 3 * math.log(2))
    nothing = sample_quality([""], tokenizer=TOKENIZER, judge=judge)
    assert nothing.as_dict()["perplexity"] is None
    json.dumps(nothing.as_dict(), allow_nan=False)


def test_perplexity_pools_the_judges_tokens_and_drops_no_sample() -> None:
    judge, seen = Teller(), []
    texts = ["aa", "bbbb", "ab"] * 5 + ["bb"]
    quality = sample_quality(
        texts, tokenizer=TOKENIZER, judge=judge, on_progress=lambda done, total: seen.append((done, total))
    )
    nats, tokens = 5 * (2 + 12 + 4) + 6, 5 * (1 + 2 + 1) + 1
    assert quality.perplexity == pytest.approx(math.exp(nats / tokens))
    assert quality.judge_bits_per_character == pytest.approx(nats / math.log(2) / (5 * 8 + 2))
    assert quality.judge == "teller"
    assert judge.texts == texts
    assert seen[-1] == (16, 16)
    rate = nats / tokens
    residuals = [2 - rate, 12 - 2 * rate, 4 - rate] * 5 + [6 - rate]
    error = math.sqrt(sum(r * r for r in residuals) * 16 / 15) / tokens
    assert quality.perplexity_se == pytest.approx(math.exp(rate) * error)


def test_it_prints_everything_together() -> None:
    shown = str(sample_quality(["abab", "aaaa"], tokenizer=TOKENIZER, judge=Teller()))
    for word in ("version 1", "unigram entropy", "distinct-1..4", "repetition", "empty", "under teller", "±"):
        assert word in shown
    assert "no judge" in str(sample_quality(["ab"], tokenizer=TOKENIZER))


def test_no_sample_is_refused() -> None:
    with pytest.raises(UserError, match="got no sample"):
        sample_quality([], tokenizer=TOKENIZER)
