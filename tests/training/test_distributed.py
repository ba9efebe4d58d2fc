"""Two processes, sharded or not, take the steps of one; a run may change the number of its processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from torch import Tensor

from training.small_run import trainer
from unmask.training.log import read_metrics

SCRIPT = Path(__file__).with_name("small_run.py")
NUMBERS: dict[str, Any] = {"steps": 4, "batch_size": 12, "checkpoint_every": 2, "log_every": 2, "learning_rate": 1e-3}
TOLERANCE = 1e-6


def two_processes(kind: str, folder: Path, **changes: Any) -> None:
    """Run small_run.py twice, over gloo."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(SCRIPT), kind, str(folder), json.dumps(NUMBERS | changes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("processes=2") == 2


def difference(a: Path, b: Path) -> float:
    """The largest difference between two runs: weights, average and exported model."""
    return max(
        float((x - y).abs().max())
        for name in ("training/step-000000004/model", "training/step-000000004/ema", "model")
        for x, y in _pairs(a / f"{name}.safetensors", b / f"{name}.safetensors")
    )


def _pairs(a: Path, b: Path) -> list[tuple[Tensor, Tensor]]:
    left, right = safetensors.torch.load_file(a), safetensors.torch.load_file(b)
    assert left.keys() == right.keys()
    return [(left[name], right[name]) for name in left]


def assert_same_figures(a: Path, b: Path) -> None:
    """The gradient's norm too: Adam forgives a gradient that is scaled by the number of processes, this does not."""
    for figure in ("nats_per_token", "grad_norm", "tokens", "learning_rate"):
        one, two = ([row[figure] for row in read_metrics(folder)] for folder in (a, b))
        assert len(one) == 2
        assert two == pytest.approx(one, rel=1e-5), figure


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process, in one micro-batch."""
    folder = tmp_path_factory.mktemp("alone")
    trainer(folder, **NUMBERS).run()
    return folder


def test_two_processes_take_the_steps_of_one_and_one_may_take_over(tmp_path: Path, alone: Path) -> None:
    two_processes("ddp", tmp_path, micro_batch_size=4)
    assert difference(alone, tmp_path) < TOLERANCE
    assert_same_figures(alone, tmp_path)
    shutil.rmtree(tmp_path / "training" / "step-000000004")
    trainer(tmp_path, **NUMBERS).run(resume=True)
    assert difference(alone, tmp_path) < TOLERANCE


def test_sharded_processes_take_the_steps_of_one_and_resume(tmp_path: Path, alone: Path) -> None:
    resumed, first = tmp_path / "run", tmp_path / "first"  # the script keeps a copy of its first run
    two_processes("fsdp", resumed, micro_batch_size=4)
    for folder in (first, resumed):
        assert difference(alone, folder) < TOLERANCE
        assert_same_figures(alone, folder)
