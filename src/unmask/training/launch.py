"""What the launcher set up: how many processes, and of which kind."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch

from unmask.errors import UserError
from unmask.training.config import TrainingConfig
from unmask.training.stream import Examples


def make_accelerator(config: TrainingConfig) -> Any:
    """The Accelerator of this process; the launcher's environment says how many there are."""
    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState

    # The main process evaluates and writes alone meanwhile: the others must not give up after ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    # A second run in one process may use another precision.
    AcceleratorState._reset_state()
    # Without `cpu`, several processes on machines without accelerators would each train alone.
    no_device = not torch.accelerator.is_available()
    return Accelerator(mixed_precision=config.mixed_precision, cpu=no_device, kwargs_handlers=[patience])


def check_launch(data: Examples, config: TrainingConfig, accelerator: Any) -> None:
    """Refuse what cannot give an exact run.

    Raises:
        UserError: processes that do not see each other, a batch_size that they cannot share, no data, DeepSpeed, or
            FSDP version 1.
    """
    world = accelerator.num_processes
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != world:
        raise UserError(
            f"training: {launched} processes were launched, but the Accelerator sees {world}; each would train alone. "
            "On CPUs make it with Accelerator(cpu=True)"
        )
    if config.batch_size % world:
        raise UserError(
            f"training: batch_size={config.batch_size} sequences do not divide among {world} processes; "
            f"take a multiple of {world}"
        )
    if len(data) == 0:
        raise UserError("training: the data holds no window; give more text or a shorter length")
    kind = str(accelerator.distributed_type.value)
    if kind == "DEEPSPEED":
        raise UserError(
            "training: met DeepSpeed, which keeps its optimizer state in its own pickled files, so that no safe, exact "
            "checkpoint can be written; launch with FSDP2 (--use_fsdp --fsdp_version 2), which shards the same things"
        )
    if kind == "FSDP" and not accelerator.is_fsdp2:
        raise UserError("training: met FSDP version 1, wanted version 2; launch with --fsdp_version 2")
