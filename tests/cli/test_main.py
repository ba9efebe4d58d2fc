import subprocess
import sys

import pytest

from unmask.cli import main as entry
from unmask.cli.main import COMMANDS, main
from unmask.errors import UserError


def command(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unmask", *arguments], capture_output=True, text=True, check=False, **settings
    )  # type: ignore[call-overload, no-any-return]


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from unmask.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'tyro', 'rich', 'numpy', 'matplotlib', 'tokenizers'} & set(sys.modules);"
        "print(heavy, file=sys.stderr); sys.exit(code or len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name}" in done.stdout for name in COMMANDS)
    assert "examples:" in done.stdout


def test_python_dash_m_prints_the_version() -> None:
    from unmask import __version__

    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"unmask {__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"  unmask {name}" in text
    assert "--json" in text
    assert ("--seed" in text) == (name != "info")


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: unmask" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["generat"], ["--bogus"], ["generate", "--bogus"], ["infill"], ["score"]])
def test_what_does_not_parse_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip()
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("first\nsecond"), 2, "unmask: first second\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "unmask: Permission denied: /x\n"),
        (OSError("odd"), 2, "unmask: odd\n"),
        (
            ModuleNotFoundError("gone", name="rich"),
            2,
            "unmask: the package rich is missing; pip install 'unmask[cli]'\n",
        ),
        (KeyboardInterrupt(), 130, "unmask: interrupted\n"),
    ],
)
def test_expected_failures_are_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(entry, "_dispatch", fail)
    assert main(["generate"]) == code
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(entry, "_dispatch", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["generate"])


def test_a_reader_that_goes_away_is_no_failure_to_talk_about() -> None:
    code = (
        "import sys, unmask.cli.main as m\n"
        "def flood(_):\n"
        "    for _ in range(100_000): print('x' * 80)\n"
        "    return 0\n"
        "m._dispatch = flood\n"
        "sys.exit(m.main([]))"
    )
    producer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert producer.stdout is not None
    assert producer.stderr is not None
    producer.stdout.readline()
    producer.stdout.close()
    assert producer.stderr.read() == b""
    assert producer.wait() == 141
