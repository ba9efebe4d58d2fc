import json
from pathlib import Path

import pytest

from unmask.text import TextModel


def test_json_holds_the_models_figures(run, model_folder: str, tmp_path: Path) -> None:
    texts = ["to be, or not to be", "that is the question " * 3]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    arguments = ("score", "two.jsonl", "--model", model_folder, "--text-field", "body", "--num-draws", 4)
    code, out, _ = run(*arguments, "--seed", 5, "--json")
    report = json.loads(out)
    expected = TextModel.from_pretrained(model_folder).score(texts, num_draws=4, seed=5)
    assert code == 0
    assert report["total"]["bits_per_character"] == pytest.approx(expected.total.bits_per_character)
    assert report["total"]["bits_per_token_se"] == pytest.approx(expected.total.bits_per_token_se)
    assert [document["num_characters"] for document in report["documents"]] == [len(text) for text in texts]
    assert report["bound"] is True


def test_the_table_has_a_row_per_document_and_a_total(run, twin_folder: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first text\fsecond text")
    code, out, _ = run("score", "a.txt", "--model", twin_folder)
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[1:4]] == ["first", "second", "total"]
    assert "± 0.0000" in lines[3]
    assert lines[-1].startswith("exact")
    code, out, _ = run("score", "a.txt", "--model", twin_folder, "--limit", 1)
    assert "second" not in out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no text"), (b"\x00\x01\x02\xff" * 100, "a.txt"), (b"caf\xe9", "a.txt"), (None, "a.txt")],
)
def test_unusable_text_is_one_line(run, model_folder: str, tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    code, out, err = run("score", "a.txt", "--model", model_folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
