import json

from unmask.text import TextModel


def test_it_tells_what_the_checkpoint_is(run, model_folder: str, twin_folder: str) -> None:
    code, out, _ = run("info", model_folder, "--json")
    report = json.loads(out)
    model = TextModel.from_pretrained(model_folder)
    assert code == 0
    assert report["kind"] == "diffusion"
    assert report["process"]["class"] == "Masked"
    assert report["process"]["schedule"] == "Linear()"
    assert report["network"]["parameters"] == sum(p.numel() for p in model.denoiser.parameters())
    assert report["network"]["max_length"] == 32
    assert report["tokenizer"]["vocab_size"] == model.tokenizer.vocab_size
    assert report["card"] == {"data": "none"}
    assert json.loads(run("info", twin_folder, "--json")[1])["kind"] == "autoregressive"


def test_the_text_form_shows_the_same(run, model_folder: str) -> None:
    _, out, _ = run("info", model_folder)
    for piece in ("diffusion", "Masked", "Linear()", "max_length", "vocab_size", "card"):
        assert piece in out


def test_a_missing_model_is_one_line(run) -> None:
    code, out, err = run("info", "no/such/folder/here")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
