import json
from pathlib import Path

import pytest

from unmask.text import TextModel


def test_the_printed_text_is_the_models(run, model_folder: str) -> None:
    code, out, _ = run("generate", "--model", model_folder, "--prompt", "to be", "--length", 12, "--seed", 4)
    assert code == 0
    expected = TextModel.from_pretrained(model_folder).generate("to be", length=12, seed=4)
    assert out == expected[0] + "\n"


def test_json_holds_texts_and_settings_and_nothing_else_is_on_standard_output(run, model_folder: str) -> None:
    arguments = ("generate", "--model", model_folder, "--length", 8, "--num-samples", 18, "--num-steps", 5, "--json")
    code, out, _ = run(*arguments, "--top-k", 9)
    report = json.loads(out)
    model = TextModel.from_pretrained(model_folder)
    assert code == 0
    texts = [sample["text"] for sample in report["samples"]]
    assert texts == model.generate(num_samples=18, length=8, num_steps=5, top_k=9)
    assert report["settings"]["num_steps"] == 5
    assert report["settings"]["top_k"] == 9
    assert {sample["finish_reason"] for sample in report["samples"]} <= {"stop", "length"}


def test_many_samples_are_told_apart(run, model_folder: str) -> None:
    _, out, _ = run("generate", "--model", model_folder, "--length", 4, "--num-samples", 3)
    assert [line for line in out.splitlines() if line.startswith("--- sample")] == [
        "--- sample 1 ---",
        "--- sample 2 ---",
        "--- sample 3 ---",
    ]


def test_show_and_html_change_no_text(run, model_folder: str, tmp_path: Path) -> None:
    base = ("generate", "--model", model_folder, "--length", 10, "--seed", 7, "--json")
    plain = json.loads(run(*base)[1])
    code, out, err = run(*base, "--show", "--html", "page.html", "--out", "deep/texts.txt")
    assert code == 0
    assert json.loads(out)["samples"] == plain["samples"]
    assert "step 10/10" in err
    assert "<!doctype html>" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "deep" / "texts.txt").read_text() == plain["samples"][0]["text"] + "\n"


def test_an_autoregressive_model_generates_too(run, twin_folder: str) -> None:
    code, out, _ = run("generate", "--model", twin_folder, "--length", 6, "--prompt", "ab", "--json")
    assert code == 0
    assert json.loads(out)["settings"]["num_steps"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-steps", "0"], "num_steps=0"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--temperature", "nan"], "temperature=nan"),
        (["--temperature", "inf"], "temperature=inf"),
        (["--top-p", "2"], "top_p=2.0"),
        (["--num-samples", "0"], "num_samples=0"),
        (["--length", "33"], "prompt longer than the context"),
        (["--prompt", "a" * 40], "prompt longer than the context"),
        (["--prompt", "é"], "is not one of the 31 characters"),
        (["--model", "nowhere/at/all"], "nowhere/at/all"),
        (["--out", "."], "it is a folder"),
        (["--html", "file/page.html"], "writing file/page.html"),
        (["--out", "/proc/nope/x.txt"], "writing /proc/nope/x.txt"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run, model_folder: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, out, err = run("generate", "--model", model_folder, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("unmask: ")
    assert message in err


@pytest.mark.parametrize("damage", ["truncated", "foreign", "version", "no mask"])
def test_a_damaged_checkpoint_is_one_line(run, model_folder: str, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in Path(model_folder).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights, config, tokenizer = (folder / n for n in ("model.safetensors", "config.json", "tokenizer.json"))
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "foreign":
        weights.write_bytes(b"PK\x03\x04 not safetensors")
    elif damage == "version":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"format_version": 99}))
    else:
        tokenizer.write_text(tokenizer.read_text().replace("[MASK]", "[HASH]"))
    code, out, err = run("generate", "--model", folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "copy" in err or "token" in err
