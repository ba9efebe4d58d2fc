"""The text corpus that ships with the package: 42 works of Shakespeare, 5 MB of plain ASCII.

Built by ``tools/build_shakespeare.py``; source and licence are told in ``assets/README.md``. Each document begins with
the title on its first line and ends with a line end.
"""

import lzma
from importlib import resources

HELD_OUT_TITLES = ("A LOVER'S COMPLAINT", "THE TRAGEDY OF KING LEAR", "TWELFTH NIGHT; OR, WHAT YOU WILL")
"""The fixed held-out works: a poem, a tragedy and a comedy, none of them part of a series of works."""


def load_shakespeare() -> list[str]:
    """The 42 works as one string each, in the fixed order of their source file names."""
    asset = resources.files("unmask") / "assets" / "shakespeare.txt.xz"
    return lzma.decompress(asset.read_bytes()).decode("ascii").split("\f")


def load_shakespeare_split() -> tuple[list[str], list[str]]:
    """(39 training works, 3 held-out works): whole works, always the same, 5.6% of the characters held out."""
    train: list[str] = []
    held_out: list[str] = []
    for work in load_shakespeare():
        title = work.partition("\n")[0]
        (held_out if title in HELD_OUT_TITLES else train).append(work)
    return train, held_out
