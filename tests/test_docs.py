"""The documentation tells the truth: python blocks run, links lead somewhere, make targets exist.

All ```python blocks of a page run in order in one namespace, in an empty folder. A block is left out only if the line
before it says why: ``<!-- not run: needs a model of your own -->``. Other fences (``sh``, ``text``) are not run.
"""

from __future__ import annotations

import re
import sys
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>[^`\n]*)$")
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    line: int  # of its first line of code
    language: str
    code: str
    skipped: bool


def fences(text: str) -> tuple[list[Block], str]:
    """The fenced blocks of a page, and the page without them (line numbers kept)."""
    blocks: list[Block] = []
    prose: list[str] = []
    opened: re.Match[str] | None = None
    code: list[str] = []
    previous = ""
    for number, line in enumerate(text.splitlines(), start=1):
        match = FENCE.match(line)
        if opened is None:
            opened = match
            prose.append("" if match else line)
            code = []
            if not match:
                previous = line if line.strip() else previous
        elif match and match["ticks"].startswith(opened["ticks"]) and not match["info"].strip():
            language = opened["info"].strip().split(" ")[0]
            margin = len(opened["indent"])
            body = "\n".join(row[margin:] for row in code) + "\n"
            blocks.append(Block(number - len(code), language, body, bool(NOT_RUN.search(previous))))
            prose.append("")
            opened, previous = None, ""
        else:
            code.append(line)
            prose.append("")
    assert opened is None, f"a fence opened by {opened and opened.group(0)!r} is never closed"
    return blocks, "\n".join(prose)


def slug(heading: str) -> str:
    """The anchor that MkDocs and GitHub make of a heading."""
    plain = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-")


def anchors(page: Path) -> set[str]:
    _, prose = fences(page.read_text(encoding="utf-8"))
    return {slug(match) for match in re.findall(r"^#{1,6}\s+(.+)$", prose, re.MULTILINE)}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def executed(page: Path) -> list[Block]:
    blocks, _ = fences(page.read_text(encoding="utf-8"))
    return [block for block in blocks if block.language == "python" and not block.skipped]


def run(blocks: list[Block], page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the blocks in one namespace; a failure names the page and the line in it."""
    module = types.ModuleType("docs_page")  # registered, because dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks:
        padded = "\n" * (block.line - 1) + block.code  # so that tracebacks count the page's lines
        try:
            exec(compile(padded, page, "exec"), module.__dict__)
        except Exception as error:
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == page]
            where = lines[-1] if lines else getattr(error, "lineno", block.line)
            pytest.fail(f"{page}:{where}: {type(error).__name__}: {error}", pytrace=False)


def broken_links(page: Path, root: Path) -> Iterator[str]:
    """Links to files or headings that do not exist; addresses of other sites are not fetched."""
    _, prose = fences(page.read_text(encoding="utf-8"))
    for number, line in enumerate(prose.splitlines(), start=1):
        for link in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            where = f"{page.relative_to(root)}:{number}: the link {link}"
            if not target.exists():
                yield f"{where} leads to no file"
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                yield f"{where} leads to no heading; there are {sorted(anchors(target))}"


@pytest.mark.parametrize("page", [page for page in PAGES if executed(page)], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(executed(page), name(page), monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = list(broken_links(page, ROOT))
    assert not broken, "\n".join(broken)


def test_pages_name_existing_make_targets() -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    commands = re.compile(r"^\s*(?:\$ )?make ([a-z][a-z -]*)|`make ([a-z][a-z -]*)`", re.MULTILINE)
    for page in PAGES:
        for match in commands.finditer(page.read_text(encoding="utf-8")):
            unknown = set((match[1] or match[2]).split()) - targets
            assert not unknown, f"{name(page)}: make has no target {sorted(unknown)}; it has {sorted(targets)}"


def test_commands_and_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every `unmask` line of a shell block names a command, and options that its --help lists."""
    from unmask.cli.main import COMMANDS, main

    used: dict[str, set[str]] = {}
    for page in PAGES:
        for block in fences(page.read_text(encoding="utf-8"))[0]:
            for line in re.findall(r"^(?:\S+ .*-m )?unmask (.+)$", block.code if block.language == "sh" else "", re.M):
                command = line.split()[0]
                assert command in COMMANDS, f"{name(page)}: there is no command `unmask {command}`"
                used.setdefault(command, set()).update(re.findall(r"(?<=\s)--[a-z-]+", line))
    assert used, "no page shows a command"
    for command, options in used.items():
        main([command, "--help"])
        unknown = options - set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
        assert not unknown, f"the documentation gives `unmask {command}` the unknown options {sorted(unknown)}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")]
    missing = [page for page in pages if not re.search(rf"[ :]{re.escape(page)}$", navigation, re.MULTILINE)]
    assert not missing, f"mkdocs.yml: add to nav: {missing}"


# -- the checks themselves ---------------------------------------------------------------------------------------------


def test_blocks_share_a_namespace_and_failures_name_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# T\n\n```python\nx = 1\n```\n\n- item\n\n    ```python\n    y = x + 1\n    assert y == 3\n    ```\n"
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:11: AssertionError"):
        run(fences(text)[0], "page.md", monkeypatch)


def test_only_a_reason_keeps_a_block_from_running() -> None:
    text = "{0}\n```python\n1 / 0\n```\n"
    skipped = [
        fences(text.format(line))[0][0].skipped
        for line in ("<!-- not run: divides -->", "<!-- not run: -->", "Read on:", "")
    ]
    assert skipped == [True, False, False, False]


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading: `x` and more\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#a-heading-x-and-more) [c](https://example.org/none) `[d](none.md)`\n"
        "```text\n[e](none.md)\n```\n"
        "[f](none.md)\n[g](other.md#nothing)\n"
    )
    found = list(broken_links(page, tmp_path))
    assert [problem.split(" leads")[0] for problem in found] == [
        "page.md:5: the link none.md",
        "page.md:6: the link other.md#nothing",
    ]
