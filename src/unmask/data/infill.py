"""Infill patterns: text with gaps, ``"The [[8]] sat on [[1-20]]."``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from unmask.errors import UserError

# `[[` opens a gap unless a third bracket follows (the last two of a run open it), or an odd number of backslashes
# stands before it.
_OPENING = re.compile(r"(\\*)\[\[(?!\[)")
_LENGTH = re.compile(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?")
_EXPECTED = "expected [[n]] or [[a-b]], in tokens, for instance [[8]] or [[1-20]]"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A gap of `shortest` to `longest` tokens, both included.

    Raises:
        ValueError: unless 0 <= shortest <= longest and longest >= 1.
    """

    shortest: int
    longest: int

    def __post_init__(self) -> None:
        if not 0 <= self.shortest <= self.longest or self.longest < 1:
            raise ValueError(
                f"Gap: got lengths {self.shortest} to {self.longest}; want 0 <= shortest <= longest and longest >= 1"
            )

    def length(self, uniform: float) -> int:
        """The length that a uniform number in (0, 1) picks, each length being equally likely."""
        return min(self.shortest + int(uniform * (self.longest - self.shortest + 1)), self.longest)


def parse_pattern(pattern: str) -> list[str | Gap]:
    r"""Split a pattern into literal texts and gaps, in order; empty texts are left out.

    ``[[n]]`` is a gap of n tokens and ``[[a-b]]`` one of a to b tokens. ``\[[`` stands for a literal ``[[``. A
    backslash means itself everywhere else; to end a text in backslashes just before a gap, double them.

    Raises:
        UserError: the pattern has no gap, or a gap does not parse; the message gives the position, from 1.
    """
    parts: list[str | Gap] = []
    literal, end = "", 0
    while (opening := _OPENING.search(pattern, end)) is not None:
        backslashes = len(opening[1])
        literal += pattern[end : opening.start()] + "\\" * (backslashes // 2)
        if backslashes % 2:
            literal += "[["
            end = opening.end()
            continue
        gap, end = _parse_gap(pattern, opening.end())
        parts += [literal, gap] if literal else [gap]
        literal = ""
    literal += pattern[end:]
    if not parts:
        raise UserError(f"infill pattern: found no gap in {_shorten(pattern)}; {_EXPECTED}")
    return [*parts, literal] if literal else parts


def format_pattern(parts: Sequence[str | Gap]) -> str:
    """The pattern that `parse_pattern` reads back as `parts`; literal ``[[`` are escaped."""
    text = ""
    for i, part in enumerate(parts):
        if isinstance(part, Gap):
            fixed = part.shortest == part.longest
            text += f"[[{part.longest}]]" if fixed else f"[[{part.shortest}-{part.longest}]]"
        else:
            text += _escape(part, before_gap=i + 1 < len(parts))
    return text


def _escape(text: str, *, before_gap: bool) -> str:
    """Escape `text`; the gap that follows takes part, for its brackets may lengthen a run of brackets."""
    whole = text + "[[" if before_gap else text

    def double(match: re.Match[str]) -> str:
        own = before_gap and match.end() == len(whole)
        return match[1] * 2 + ("" if own else "\\") + "[["

    escaped = _OPENING.sub(double, whole)
    return escaped[:-2] if before_gap else escaped


def _parse_gap(pattern: str, start: int) -> tuple[Gap, int]:
    """The gap whose inside starts at `start`, and where the text goes on."""
    close = pattern.find("]]", start)
    where = f"infill pattern: at character {start - 1}:"
    if close < 0:
        raise UserError(f"{where} `[[` is not closed by `]]`; {_EXPECTED} (write \\[[ for a literal [[)")
    inside = pattern[start:close]
    match = _LENGTH.fullmatch(inside)
    if match is None:
        raise UserError(f"{where} cannot read {_shorten(inside)} as a length; {_EXPECTED}")
    shortest, longest = int(match[1]), int(match[2] or match[1])
    if longest < 1:
        raise UserError(f"{where} a gap of 0 tokens has nothing to fill; {_EXPECTED}")
    if shortest > longest:
        raise UserError(f"{where} the range {shortest}-{longest} runs backwards; write [[{longest}-{shortest}]]")
    return Gap(shortest=shortest, longest=longest), close + 2


def _shorten(text: str, width: int = 40) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")
