"""Timing and the table's rows."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        target_number: which target it answers, e.g. "1".
        what: what was compared, with sizes.
        value: the measured number, a ratio unless `unit` says otherwise.
        bound: the number wanted.
        at_least: whether `value` should lie above `bound` (below it otherwise); None: told for information only.
        details: the absolute figures behind it.
    """

    target_number: str
    what: str
    value: float
    bound: float = float("nan")
    at_least: bool | None = None
    unit: str = "x"
    details: str = ""

    @property
    def verdict(self) -> str:
        if self.at_least is None:
            return "-"
        met = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "met" if met else "missed"

    @property
    def wanted(self) -> str:
        if self.at_least is None:
            return "-"
        return f"{'>=' if self.at_least else '<='} {self.bound:g} {self.unit}".replace(" x", "x")

    @property
    def cells(self) -> list[str]:
        measured = f"{self.value:.4g} {self.unit}".replace(" x", "x")
        return [self.target_number, self.what, measured, self.wanted, self.verdict, self.details]


def interleaved(works: Mapping[str, Work], repetitions: int, *, warm_up: bool = True) -> dict[str, float]:
    """Best seconds of each piece of work, taking turns so that a drift of the machine hits all of them alike.

    Seconds of processor time, which on one thread are those of the clock less what other processes took.
    """
    best = dict.fromkeys(works, float("inf"))
    for work in works.values() if warm_up else ():
        work()  # the first run pays for caches and allocation
    for _ in range(repetitions):
        for name, work in works.items():
            gc.collect()
            begun = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - begun)
    return best


def fastest(seconds: Mapping[str, float], *, apart: str) -> tuple[str, float]:
    """The quickest of all but one."""
    name = min((n for n in seconds if n != apart), key=seconds.__getitem__)
    return name, seconds[name]


def listed(seconds: Mapping[str, float]) -> str:
    """Milliseconds of each, quickest first."""
    return ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in sorted(seconds.items(), key=lambda item: item[1]))


def machine() -> str:
    """One line: processor, cores in use, versions, and whether bfloat16 runs in hardware."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores used"
    vectors = f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {'in hardware' if has_bfloat16() else 'emulated'}"
    return f"{name}; {threads}; {vectors}; Python {platform.python_version()}, PyTorch {torch.__version__}"


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself; emulated, they are slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
