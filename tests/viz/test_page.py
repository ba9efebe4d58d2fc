import json
import re
from pathlib import Path

import pytest

from unmask.viz.page import write_page
from unmask.viz.trace import Event, RowTrace, Trace

NASTY = "</script><script>alert(1)</script>"


def nasty_trace() -> Trace:
    events = (
        Event(step=1, site=1, text=NASTY, confidence=0.25),
        Event(step=2, site=0, text="<!--<img src=x onerror=alert(2)>&amp;\u2028", confidence=None),
        Event(step=2, site=1, text=None, confidence=None),
        Event(step=3, site=1, text=" héllo\n", confidence=0.5),
    )
    rows = [RowTrace(initial=(None, None, "given"), events=events)]
    return Trace(rows=rows, times=[0.7, 0.3, 0.0], network_calls=[1, 2, 3], seconds=[0.1, 0.2, 0.3])


@pytest.fixture
def page(tmp_path: Path) -> str:
    facts = {"model<b>": '"x" <i>'}
    path = write_page(tmp_path / "sub" / "page.html", nasty_trace(), title="A <b>%TRACE%</b>", facts=facts)
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    return path.read_text(encoding="utf-8")


def test_text_can_neither_leave_the_data_nor_become_markup(page: str) -> None:
    assert page.count("</script") == 2
    assert page.count("<script") == 2
    for piece in ("<img", "<!--", "<b>%", "<i>"):
        assert piece not in page.replace("<!doctype", "")
    assert "\u2028" not in page[page.index('id="trace"') :]
    assert "A &lt;b&gt;%TRACE%&lt;/b&gt;" in page


def test_the_data_survives_the_escaping(page: str) -> None:
    match = re.search(r'<script type="application/json" id="trace">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    data = json.loads(match[1])
    strings = data["strings"]
    row = data["rows"][0]
    assert [None if i < 0 else strings[i] for i in row["initial"]] == [None, None, "given"]
    events = [(k, site, None if s < 0 else strings[s], p) for k, site, s, p in row["events"]]
    assert events == [(e.step, e.site, e.text, e.confidence) for e in nasty_trace().rows[0].events]
    assert data["times"] == [0.7, 0.3, 0.0]


def test_nothing_outside_is_asked_for(page: str) -> None:
    assert not re.search(r"https?:|//\w|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|\bsrc=(?!x )", page)
    assert "fetch(" not in page
    assert "default-src 'none'" in page


def test_keyboard_and_assistive_hooks_are_there(page: str) -> None:
    for needed in ("ArrowLeft", "ArrowRight", "Home", "End", 'aria-label="Play"', 'aria-label="Step"', "noscript"):
        assert needed in page
    assert "prefers-reduced-motion" in page
    assert "prefers-color-scheme: dark" in page


def test_without_scripts_the_final_text_is_shown(page: str) -> None:
    shown = page[page.index("<noscript>") : page.index("</noscript>")]
    assert "&amp;amp;" in shown
    assert " héllo\n" in shown
    assert "given" in shown


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_page(tmp_path / "page.html", nasty_trace(), title="old")
    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(OSError, match="No space"):
        write_page(path, nasty_trace(), title="new")
    assert "old" in path.read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 1


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")
