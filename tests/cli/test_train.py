import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unmask.text import TextModel

TEXT = "the cat sat on the mat and the dog sat on the log, so they sat.\n\n" * 60
QUICK = ("--steps", 6, "--batch-size", 4, "--context", 16, "--held-out", 0.1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "my.txt"
    path.write_text(TEXT)
    return path


def test_train_then_every_other_command(run, data: Path, tmp_path: Path) -> None:
    code, out, _ = run("train", "--data", data, "--out", "runs/mine", *QUICK)
    assert code == 0
    assert "this model (upper bound)" in out
    assert "order-4 n-gram" in out
    for line in ("unmask generate --model runs/mine --show", "unmask score FILE --model runs/mine"):
        assert line in out
    folder = tmp_path / "runs" / "mine"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "curve.png", "denoising.html", "samples.txt"):
        assert (folder / name).stat().st_size > 0
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 6
    assert result["recipe"]["tokenizer"] == "characters"
    assert result["infill"]["text"] in (folder / "samples.txt").read_text()
    assert run("generate", "--model", folder, "--length", 5)[0] == 0
    assert run("infill", "the [[3]] sat", "--model", folder)[0] == 0
    assert run("score", data, "--model", folder, "--num-draws", 4)[0] == 0
    assert json.loads(run("info", folder, "--json")[1])["card"]["training"]["step"] == 6


def test_an_existing_run_is_refused_resumed_or_replaced(run, data: Path, tmp_path: Path) -> None:
    assert run("train", "--data", data, "--out", "mine", *QUICK, "--json")[0] == 0
    before = (tmp_path / "mine" / "model.safetensors").read_bytes()
    code, out, err = run("train", "--data", data, "--out", "mine", *QUICK)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "--resume" in err
    assert "--overwrite" in err
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == before
    code, out, _ = run("train", "--out", "mine", "--resume", "--json")
    assert code == 0
    assert json.loads(out)["recipe"]["context"] == 16
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() == before
    code, out, _ = run("train", "--data", data, "--out", "mine", *QUICK, "--overwrite", "--seed", 1, "--json")
    assert code == 0
    assert (tmp_path / "mine" / "model.safetensors").read_bytes() != before


def test_resuming_with_another_vocabulary_or_text_is_refused(run, data: Path, tmp_path: Path) -> None:
    assert run("train", "--data", data, "--out", "mine", *QUICK)[0] == 0
    (tmp_path / "other.txt").write_text(TEXT.replace("cat", "kit") + "ß")
    for arguments in (["--data", "other.txt"], ["--tokenizer", "bytes"], ["--causal"], ["--size", "small"]):
        code, out, err = run("train", "--out", "mine", "--resume", *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.count("unmask: ") == 1, arguments
        assert "Traceback" not in err
    code, out, _ = run("train", "--out", "mine", "--resume", "--json")
    assert code == 0  # the refusals lost nothing
    assert json.loads(out)["recipe"]["data"] == str(data)


def test_the_autoregressive_twin_differs_in_the_mask_only(run, data: Path) -> None:
    code, out, _ = run("train", "--data", data, "--out", "twin", "--causal", *QUICK, "--json")
    twin = json.loads(out)
    assert code == 0
    assert twin["infill"] is None
    model = TextModel.from_pretrained("twin")
    assert model.autoregressive
    code, out, _ = run("train", "--data", data, "--out", "mine", *QUICK, "--json")
    assert json.loads(out)["parameters"] == twin["parameters"]


def test_minutes_become_steps(run, data: Path) -> None:
    code, out, _ = run("train", "--data", data, "--out", "m", "--minutes", 0.02, *QUICK[2:], "--json")
    assert code == 0
    report = json.loads(out)
    assert report["steps"] >= 10
    assert report["recipe"]["minutes"] is None
    assert report["recipe"]["steps"] == report["steps"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing"),
        (["--data", "empty.txt"], "holds no text"),
        (["--data", "nothing.txt"], "nothing.txt"),
        (["--data", "my.txt", "--steps", "0"], "steps=0"),
        (["--data", "my.txt", "--minutes", "nan"], "minutes=nan"),
        (["--data", "my.txt", "--steps", "3", "--minutes", "1"], "not both"),
        (["--data", "short.txt", "--steps", "3"], "fewer than one window"),
        (["--data", "my.txt", "--held-out", "1.5"], "held_out=1.5"),
        (["--data", "my.txt", "--tokenizer", "nowhere.json", "--steps", "3"], "nowhere.json"),
        (["--data", "my.txt", "--resume"], "no run to resume"),
        (["--data", "my.txt", "--out", "my.txt"], "it is a file"),
    ],
)
def test_bad_input_is_one_line(run, data: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("too short to fill one window")
    code, out, err = run("train", "--out", "mine", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_an_interrupted_run_can_be_resumed(run, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unmask", "train", "--data", str(data), "--out", "mine", "--steps", "100000"]
    process = subprocess.Popen(
        [*command, "--batch-size", "4", "--context", "16"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "mine" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert "go on with --resume" in err
    assert run("generate", "--model", "mine", "--length", 4)[0] == 0
