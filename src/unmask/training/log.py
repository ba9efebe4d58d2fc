"""What a run tells: a progress bar, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a kill cut short is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def truncate_metrics(folder: Path, step: int) -> None:
    """Forget what was logged after `step`, so that a resumed run writes no step twice."""
    rows = [row for row in read_metrics(folder) if row["step"] <= step]
    hidden = folder / f".{METRICS}"
    with hidden.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(folder / METRICS)


class RunLog:
    """The outputs of the main process.

    Args:
        folder: of the run.
        start: steps already done.
        steps: steps in all.
        tensorboard: write event files to folder/tensorboard.
        progress: show a bar; where stderr is not a terminal, one line every 30 seconds.
    """

    def __init__(self, folder: Path, *, start: int, steps: int, tensorboard: bool, progress: bool) -> None:
        truncate_metrics(folder, start)
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=steps, initial=start, unit="step", mininterval=interval, maxinterval=interval, disable=not progress
        )
        self._shown: dict[str, str] = {}

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def write(self, row: dict[str, Any]) -> None:
        """Append one line of metrics; numbers go to TensorBoard too."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, row["step"])
            if "sample" in row:
                self._writer.add_text("sample", row["sample"], row["step"])
        hidden = ("step", "tokens", "seconds", "grad_norm", "learning_rate")
        shown = {name: f"{value:.4g}" for name, value in numbers.items() if name not in hidden}
        self._shown.update(shown)
        self._bar.set_postfix(self._shown, refresh=False)
        if "sample" in row:
            self.say(row["sample"])

    def say(self, text: str) -> None:
        """Print above the bar."""
        if not self._bar.disable:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Finish the bar and the files."""
        self._bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()
