"""Import time beyond PyTorch's own, and the time until `unmask --help` has printed."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.measure import Row

# every public name is resolved, since `import unmask` alone loads almost nothing
_IMPORT = """
import time, torch
begun = time.perf_counter()
import unmask
for name in unmask.__all__:
    getattr(unmask, name)
print(time.perf_counter() - begun)
"""


def import_seconds() -> float:
    """Seconds to import all public names of `unmask` after torch, in a fresh process."""
    done = subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True)
    return float(done.stdout)


def help_seconds() -> float:
    """Seconds of `unmask --help`, the whole process."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "unmask", "--help"], check=True, capture_output=True)
    return time.perf_counter() - begun


def rows(repetitions: int = 5) -> list[Row]:
    imports = min(import_seconds() for _ in range(repetitions))
    helped = min(help_seconds() for _ in range(repetitions))
    return [
        Row(
            target_number="6",
            what="importing every public name of `unmask`, beyond torch",
            value=imports,
            bound=0.3,
            at_least=False,
            unit="s",
        ),
        Row(target_number="6", what="`unmask --help`, in all", value=helped, bound=1.0, at_least=False, unit="s"),
    ]
