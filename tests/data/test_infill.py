import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.data.infill import Gap, format_pattern, parse_pattern
from unmask.errors import UserError

gaps = st.tuples(st.integers(0, 30), st.integers(1, 30)).map(lambda g: Gap(shortest=min(g), longest=max(g)))
literals = st.text(alphabet="ab[]\\1-é\n ", max_size=12)


@given(st.lists(st.one_of(literals, gaps), max_size=8))
def test_every_list_of_texts_and_gaps_survives_the_round_trip(parts: list[str | Gap]) -> None:
    merged: list[str | Gap] = []
    for part in [*parts, Gap(shortest=1, longest=2)]:  # one gap at least; neighbouring texts are one text
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    assert parse_pattern(format_pattern(merged)) == merged


@given(st.text(alphabet="ab[]\\0123456789- ", max_size=30))
def test_any_string_parses_or_is_refused_by_name(pattern: str) -> None:
    met: UserError | None = None
    try:
        parts = parse_pattern(pattern)
    except UserError as error:
        met = error
    if met is None:
        assert any(isinstance(part, Gap) for part in parts)
        assert parse_pattern(format_pattern(parts)) == parts
    else:
        assert str(met).startswith("infill pattern:")


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("The [[8]] sat on [[1-20]].", ["The ", (8, 8), " sat on ", (1, 20), "."]),
        ("[[3]]", [(3, 3)]),
        ("[[3]][[0-4]]", [(3, 3), (0, 4)]),
        (r"a \[[3]] b [[ 2 - 5 ]]", ["a [[3]] b ", (2, 5)]),
        (r"path\\[[3]]", ["path\\", (3, 3)]),
        (r"C:\dir [x] [[1]]", [r"C:\dir [x] ", (1, 1)]),
        ("[[[7]]]", ["[", (7, 7), "]"]),
    ],
)
def test_examples(pattern: str, parts: list[str | tuple[int, int]]) -> None:
    expected = [p if isinstance(p, str) else Gap(shortest=p[0], longest=p[1]) for p in parts]
    assert parse_pattern(pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("no gap", "found no gap"),
        ("", "found no gap"),
        (r"\[[3]]", "found no gap"),
        ("ab [[3", "at character 4: `\\[\\[` is not closed"),
        ("[[1]] [[x]]", "at character 7: cannot read 'x'"),
        ("[[]]", "at character 1: cannot read ''"),
        ("[[-3]]", "cannot read '-3'"),
        ("[[٣]]", "cannot read"),
        ("[[1.5]]", "cannot read"),
        ("[[0]]", "at character 1: a gap of 0 tokens"),
        ("[[9-2]]", "runs backwards; write \\[\\[2-9"),
    ],
)
def test_bad_patterns_say_where_and_what(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_pattern(pattern)


def test_a_range_draws_each_length_equally_often() -> None:
    gap, n = Gap(shortest=2, longest=6), 1000
    lengths = [gap.length((k + 0.5) / n) for k in range(n)]
    assert [lengths.count(length) for length in range(1, 8)] == [0, 200, 200, 200, 200, 200, 0]
    assert gap.length(1 - 2.0**-53) == 6


@pytest.mark.parametrize(("shortest", "longest"), [(-1, 3), (0, 0), (4, 3)])
def test_an_impossible_gap_is_refused(shortest: int, longest: int) -> None:
    with pytest.raises(ValueError, match="want 0 <= shortest <= longest"):
        Gap(shortest=shortest, longest=longest)
