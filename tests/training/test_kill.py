"""Killed ten times at random moments, once inside the writing of a checkpoint: the same bits as never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch

from unmask.training.log import read_metrics

SCRIPT = Path(__file__).with_name("kill_runs.py")
CHECKPOINT_EVERY = 6


def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path), "10"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["half_written"]
    assert report["looks"] > 20  # every checkpoint in sight was read that often, and was whole
    assert len(report["lost"]) == 9
    # Of the steps begun, at most those since the last checkpoint are lost, and the one that was being written.
    assert max(report["lost"]) <= 2 * CHECKPOINT_EVERY + 1

    state = f"training/step-{report['last']:09d}"
    for name in (f"{state}/model", f"{state}/ema", f"{state}/optimizer", "model"):
        killed, unbroken = (
            safetensors.torch.load_file(tmp_path / run / f"{name}.safetensors") for run in ("killed", "unbroken")
        )
        assert killed.keys() == unbroken.keys()
        assert all(torch.equal(killed[key], unbroken[key]) for key in killed), name
    losses = [
        [(row["step"], row["nats_per_token"]) for row in read_metrics(tmp_path / run)] for run in ("killed", "unbroken")
    ]
    assert losses[0] == losses[1]
    leftovers = [path for path in (tmp_path / "killed").rglob(".*")]
    assert not leftovers
