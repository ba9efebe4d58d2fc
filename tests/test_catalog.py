"""Every method is catalogued: one row of docs/methods.md, an import that resolves, a test file and a cited paper."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("schedules", "processes", "denoisers", "losses", "samplers", "select", "guidance", "inverse")
HEADER = ["Key", "Method", "Year", "Import", "Paper", "How it is verified"]
DOTTED = re.compile(r"`(unmask(?:\.\w+)+)`")
CITATION = re.compile(r"arXiv:\s?(\d{4}\.\d{4,5}|[a-z-]+/\d{7})|\b(19|20)\d\d\b")
EXAMPLE_ROW = (
    "| key | Name | 2024 | `unmask.{kind}.{name}.ClassName` | Authors, arXiv:2401.00001 | the law equals ... |"
)


@dataclass(frozen=True)
class Row:
    line: int
    cells: dict[str, str]

    @property
    def imports(self) -> list[str]:
        return DOTTED.findall(self.cells["Import"])


def method_modules(root: Path) -> list[Path]:
    """The files that hold one method each, relative to `root`."""
    files = (path for kind in KINDS for path in (root / "src/unmask" / kind).glob("*.py"))
    return sorted(path.relative_to(root) for path in files if path.name != "__init__.py")


def read_rows(page: Path) -> list[Row]:
    """The rows of every table in the page that has the catalogue's header."""
    rows, header = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("|"):
            header = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if header is None:
            header = cells
        elif header == HEADER and set("".join(cells)) - set(":- "):
            assert len(cells) == len(HEADER), (
                f"docs/methods.md:{number} has {len(cells)} cells, wanted {len(HEADER)}: {HEADER}"
            )
            rows.append(Row(number, dict(zip(HEADER, cells, strict=True))))
    return rows


def dotted(module: Path) -> str:
    return ".".join(module.relative_to("src").with_suffix("").parts)


def row_problems(module: Path, rows: list[Row]) -> Iterator[str]:
    """Exactly one row names the module in its Import column, and that row is filled in."""
    name = dotted(module)
    mine = [row for row in rows if any(path == name or path.startswith(name + ".") for path in row.imports)]
    if not mine:
        example = EXAMPLE_ROW.format(kind=module.parent.name, name=module.stem)
        yield f"{module}: no row of docs/methods.md names `{name}` in its Import column; add one: {example}"
    if len(mine) > 1:
        lines = ", ".join(str(row.line) for row in mine)
        yield f"{module}: docs/methods.md names `{name}` in {len(mine)} rows (lines {lines}); keep one"
    for row in mine[:1]:
        empty = [column for column, cell in row.cells.items() if not cell]
        if empty:
            yield f"docs/methods.md:{row.line} (for {module}): fill in {', '.join(empty)}"


def test_file_problems(module: Path, root: Path) -> Iterator[str]:
    wanted = Path("tests") / module.parent.name / f"test_{module.stem}.py"
    if not (root / wanted).is_file():
        yield f"{module}: it has no test; write {wanted} (run its contract suite and what its paper claims)"
    elif not re.search(r"^\s*def test_|^class Test\w*\(\w", (root / wanted).read_text(encoding="utf-8"), re.MULTILINE):
        yield f"{wanted}: it defines no test, nor inherits any"


test_file_problems.__test__ = False  # type: ignore[attr-defined]


# they start from finished samples, which the contracts do not have: their own tests hold seeds, fixed sites, padding
# and the batch
WITHOUT_CONTRACT = {"redenoise", "self_correction"}
CONTRACTS = ("(SamplerContract)", "(StateContract)")


def contract_problems(module: Path, root: Path) -> Iterator[str]:
    """The test of a sampler runs the samplers' contract."""
    test = Path("tests/samplers") / f"test_{module.stem}.py"
    if module.parent.name != "samplers" or module.stem in WITHOUT_CONTRACT or not (root / test).is_file():
        return
    text = (root / test).read_text(encoding="utf-8")
    if not any(contract in text for contract in CONTRACTS):
        yield f"{test}: no class of it runs the contract; write `class TestContract(SamplerContract)` with its `make`"


def citation_problems(module: Path, root: Path) -> Iterator[str]:
    """A docstring of the module or of something in it has a References section with an arXiv id or a year."""
    tree = ast.parse((root / module).read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    references = [text.split("References:", 1)[1] for text in texts if "References:" in text]
    if not any(CITATION.search(text) for text in references):
        yield (
            f"{module}: no docstring cites the paper; end the class's with `References:` and the authors, title, year "
            "and arXiv id (or venue and year)"
        )


def import_problems(row: Row) -> Iterator[str]:
    where = f"docs/methods.md:{row.line}"
    if not row.imports:
        yield f"{where}: its Import column names nothing; write `unmask.kind.name.ClassName`, backticks included"
    for path in row.imports:
        if not resolves(path):
            yield f"{where}: `{path}` does not resolve; correct the path, or remove the row with the method"


def resolves(path: str) -> bool:
    """Whether the path is a module, or a chain of attributes of one."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        prefix = ".".join(parts[:cut])
        try:
            found: object = importlib.import_module(prefix)
        except ModuleNotFoundError as error:
            if error.name and (prefix == error.name or prefix.startswith(error.name + ".")):
                continue
            raise  # the module is there, and something that it imports is not
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def check(problems: Iterator[str]) -> None:
    """Fail with all problems at once, one a line."""
    found = list(problems)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.mark.parametrize("module", method_modules(ROOT), ids=str)
def test_method_is_catalogued_tested_and_cited(module: Path) -> None:
    def problems() -> Iterator[str]:
        yield from row_problems(module, read_rows(ROOT / "docs/methods.md"))
        yield from test_file_problems(module, ROOT)
        yield from contract_problems(module, ROOT)
        yield from citation_problems(module, ROOT)

    check(problems())


def test_imports_of_the_catalogue_resolve() -> None:
    check(problem for row in read_rows(ROOT / "docs/methods.md") for problem in import_problems(row))


# -- the check itself: every omission is noticed, and the message names the file ---------------------------------

CITED = '"""A sampler.\n\nReferences:\n    Doe, "A sampler", 2024, arXiv:2401.00001.\n"""\n'
GOOD_ROW = "| k | Name | 2024 | `unmask.samplers.ancestral` | Doe 2024 | exact law |"


def make_tree(root: Path, *, source: str = CITED, rows: tuple[str, ...] = (GOOD_ROW,), test: str | None = None) -> Path:
    module = root / "src/unmask/samplers/ancestral.py"
    tests = root / "tests/samplers"
    for folder in (module.parent, tests, root / "docs"):
        folder.mkdir(parents=True, exist_ok=True)
    module.write_text(source)
    table = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|", *rows]
    (root / "docs/methods.md").write_text("# Methods\n\n" + "\n".join(table) + "\n")
    if test is not None:
        (tests / "test_ancestral.py").write_text(test)
    return root


def problems_of(root: Path) -> str:
    rows = read_rows(root / "docs/methods.md")
    (module,) = method_modules(root)
    found = [
        *row_problems(module, rows),
        *test_file_problems(module, root),
        *contract_problems(module, root),
        *citation_problems(module, root),
    ]
    return "\n".join(found + [problem for row in rows for problem in import_problems(row)])


CONTRACT = "class TestContract(SamplerContract):\n    pass\n"
ONE_TEST = CONTRACT + "def test_law():\n    pass\n"
OMISSIONS = {
    "no row": ({"rows": ()}, "src/unmask/samplers/ancestral.py: no row of docs/methods.md"),
    "two rows": ({"rows": (GOOD_ROW, GOOD_ROW)}, "in 2 rows (lines 5, 6)"),
    "empty key": ({"rows": (GOOD_ROW.replace("| k |", "|  |"),)}, "docs/methods.md:5 (for src/unmask"),
    "dead import": ({"rows": (GOOD_ROW.replace("ancestral", "ancestral.Nonsense"),)}, "does not resolve"),
    "no test": ({"test": None}, "write tests/samplers/test_ancestral.py"),
    "no contract": ({"test": "def test_law():\n    pass\n"}, "no class of it runs the contract"),
    "empty test": ({"test": "# later\n"}, "defines no test"),
    "no paper": ({"source": '"""A sampler from arXiv:2401.00001."""\n'}, "no docstring cites the paper"),
    "no date": ({"source": '"""A sampler.\n\nReferences:\n    Doe.\n"""\n'}, "no docstring cites the paper"),
}


@pytest.mark.parametrize("name", OMISSIONS)
def test_check_notices_every_omission(name: str, tmp_path: Path) -> None:
    arguments, message = OMISSIONS[name]
    assert message in problems_of(make_tree(tmp_path, **{"test": ONE_TEST, **arguments}))


def test_check_accepts_a_complete_method(tmp_path: Path) -> None:
    assert problems_of(make_tree(tmp_path, test=ONE_TEST)) == ""
