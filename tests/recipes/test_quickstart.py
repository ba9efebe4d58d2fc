import functools
import json
from pathlib import Path

import pytest

from unmask.recipes import quickstart
from unmask.recipes.held_out import HeldOut


def test_the_first_run_leaves_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few seconds of it, measured on a few windows: every file is there, the figures are ordered as they must be."""
    monkeypatch.setattr(HeldOut, "figures", functools.partialmethod(HeldOut.figures, max_windows=32))
    out = tmp_path / "quickstart"
    text = quickstart.quickstart(str(out), minutes=0.03)
    result = json.loads((out / "result.json").read_text())
    bits = {name: row["value"] for name, row in result["references"].items()}
    assert bits["order-4 n-gram"] < bits["unigram"]
    assert bits["unigram"] == pytest.approx(4.757, abs=0.02), "the same split and model as documented"
    assert 2.0 < result["held_out_bits_per_character"]["value"] < 7.0
    assert result["held_out_bits_per_character"]["standard_error"] > 0
    assert result["recipe"]["seed"] == 0
    assert result["versions"]["torch"]
    for name in ("samples.txt", "curve.png", "denoising.html", "model.safetensors", "config.json", "tokenizer.json"):
        assert (out / name).stat().st_size > 100, name
    assert text.count("--- sample") == 3
    assert "pattern: " in text
    page = (out / "denoising.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
