"""Lives of one run, each killed at a random moment: kill_runs.py FOLDER NUM_KILLS. Prints what it saw as JSON.

Every life is a fork of this process, which has imported everything once; a life starts in milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import accelerate  # noqa: F401  (for the children)
import safetensors.torch
import torch
import torch._dynamo  # (optimizers import it at their first step)
from small_run import Ragged, tokenizer, trainer

from unmask.errors import UserError
from unmask.training.state import read_state, saved_states, step_of

STEPS = 170
OPTIONS: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 6, "log_every": 4, "dropout": 0.2}
PARTS = {"model", "ema", "optimizer"}


class Telling(Ragged):
    """Writes a byte to a pipe for every batch."""

    def __init__(self, pipe: int) -> None:
        super().__init__(tokenizer())
        self.pipe = pipe

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor | None]:
        os.write(self.pipe, b".")
        return super().batch(indices)


def life(run: Callable[[int], None]) -> tuple[int, int]:
    """Fork a child that calls `run` with a pipe; its process id and the other end of the pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    _live(run, writing)


def _live(run: Callable[[int], None], writing: int) -> NoReturn:
    try:
        run(writing)
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(1)


def train(folder: Path, pipe: int) -> None:
    torch.set_num_threads(1)
    trainer(folder, Telling(pipe), **OPTIONS).run(resume=True)


def train_and_stall(folder: Path, pipe: int) -> None:
    """Stop for good in the middle of the second file of a checkpoint, and tell."""
    whole = safetensors.torch.save_file

    def stall(tensors: Any, path: Path, **options: Any) -> None:
        whole(tensors, path, **options)
        if Path(path).name == "optimizer.safetensors":
            data = Path(path).read_bytes()
            Path(path).write_bytes(data[: len(data) // 2])
            os.write(pipe, b"!")
            time.sleep(600)

    safetensors.torch.save_file = stall
    train(folder, pipe)


def look(folder: Path) -> int:
    """Read every checkpoint in sight; the last step. One that is pruned meanwhile may vanish, but never in part."""
    last = 0
    for path in saved_states(folder / "training"):
        try:
            tensors, meta = read_state(path)
        except UserError:
            if path.exists():
                raise
            continue
        assert tensors.keys() == PARTS, f"{path} has only {sorted(tensors)}"
        assert meta["step"] == step_of(path)
        last = max(last, step_of(path))
    if (folder / "model.safetensors").exists():
        safetensors.torch.load_file(folder / "model.safetensors")
    return last


def kill_after(folder: Path, batches: int, delay: float) -> int:
    """One life that ends in its `batches`-th batch plus `delay` seconds; how often it was looked at."""
    child, pipe = life(lambda writing: train(folder, writing))
    seen = looks = 0
    while seen < batches:
        got = os.read(pipe, batches - seen)
        if not got:
            raise SystemExit("a life ended before it was killed")
        seen += len(got)
        look(folder)
        looks += 1
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    end(child, pipe, wanted=-signal.SIGKILL)
    return looks


def kill_in_write(folder: Path) -> bool:
    """One life that ends half-way through writing a checkpoint; whether its half was there, out of sight."""
    child, pipe = life(lambda writing: train_and_stall(folder, writing))
    while os.read(pipe, 1) != b"!":
        pass
    os.kill(child, signal.SIGKILL)
    end(child, pipe, wanted=-signal.SIGKILL)
    look(folder)
    return any(path.name.startswith(".writing-") for path in (folder / "training").iterdir())


def end(child: int, pipe: int, *, wanted: int) -> None:
    _, status = os.waitpid(child, 0)
    os.close(pipe)
    met = os.waitstatus_to_exitcode(status)
    assert met == wanted, f"a life ended with {met}, wanted {wanted}"


def finish(folder: Path) -> None:
    child, pipe = life(lambda writing: train(folder, writing))
    while os.read(pipe, 4096):
        pass
    end(child, pipe, wanted=0)


def main(folder: Path, num_kills: int) -> None:
    chance = random.Random(2024)
    killed, looks, half = folder / "killed", 0, False
    lost, last = [], 0
    for number in range(num_kills):
        before = look(killed)
        assert before >= last, "a checkpoint was lost"
        if number == num_kills // 2:
            half = kill_in_write(killed)
        else:
            batches = chance.randint(3, STEPS // num_kills - 2)
            looks += kill_after(killed, batches, chance.uniform(0, 0.03))
            lost.append(before + batches - look(killed))
        last = before
    assert look(killed) < STEPS, "the run ended before the last kill"
    finish(killed)
    finish(folder / "unbroken")
    report = {"looks": looks, "half_written": half, "lost": lost, "last": look(killed)}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
