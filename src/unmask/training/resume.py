"""Which run a folder holds, and whether a run may go on from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.checkpoint import Checkpoint
from unmask.errors import UserError
from unmask.loss import Loss
from unmask.training.config import TrainingConfig
from unmask.training.log import METRICS
from unmask.training.state import remove_leftovers
from unmask.training.stream import Examples

# These may change between the parts of a run: they leave its weights as they are, up to rounding and dropout.
_FREE = (
    "micro_batch_size",
    "compile",
    "log_every",
    "eval_every",
    "sample_every",
    "checkpoint_every",
    "checkpoint_seconds",
    "tensorboard",
)
_OWN = ("config.json", "model.safetensors", METRICS)


def prepare_folder(folder: Path, accelerator: Any, *, resume: bool, overwrite: bool) -> None:
    """Make the folder ready, or refuse it. Collective: every process checks before the main one changes anything.

    Raises:
        UserError: it holds a run and neither option is given, or both are.
    """
    if resume and overwrite:
        raise UserError(f"training in {folder}: --resume and --overwrite exclude each other; give one of them")
    used = [name for name in (*_OWN, "training") if (folder / name).exists()]
    if used and not resume and not overwrite:
        raise UserError(
            f"training in {folder}: it already holds a run ({', '.join(used)}); go on with --resume, replace it with "
            "--overwrite, or name another folder"
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if overwrite:
            for name in ("training", "tensorboard"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in _OWN:
                (folder / name).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder / "training")
    accelerator.wait_for_everyone()


def describe_run(checkpoint: Checkpoint, loss: Loss, data: Examples, config: TrainingConfig) -> dict[str, Any]:
    """What must stay the same for a resumed run to be the same run, as JSON values."""
    tokenizer = checkpoint.tokenizer
    description = {
        "config": dataclasses.asdict(config),
        "tokenizer": None if tokenizer is None else tokenizer.fingerprint(),
        "data": _data_fingerprint(data),
        "loss": repr(loss),
    }
    return json.loads(json.dumps(description))


def check_resumable(meta: dict[str, Any], identity: dict[str, Any], path: Path) -> None:
    """Compare a training checkpoint with the run that wants to go on from it.

    `steps` may change only under "wsd" and only while no step has decayed yet: under "cosine" every earlier learning
    rate would have been another.

    Raises:
        UserError: naming every setting that differs, both values of each.
    """
    changes = [
        f"{name}={meta['config'].get(name)!r} became {value!r}"
        for name, value in identity["config"].items()
        if name not in (*_FREE, "steps") and meta["config"].get(name) != value
    ]
    if not _steps_may_change(meta, identity):
        changes.append(f"steps={meta['config']['steps']} became {identity['config']['steps']}")
    changes += [
        f"the {name} {meta[name]} became {identity[name]}"
        for name in ("tokenizer", "data", "loss")
        if meta[name] != identity[name]
    ]
    if changes:
        raise UserError(
            f"resuming from {path}: this is another run: {'; '.join(changes)}. Resume with the settings that it began "
            'with (steps may change only with lr_schedule="wsd" and before its decay), or start anew with --overwrite'
        )


def _steps_may_change(meta: dict[str, Any], identity: dict[str, Any]) -> bool:
    old, new = (TrainingConfig(**{**d["config"], "betas": tuple(d["config"]["betas"])}) for d in (meta, identity))
    if old.steps == new.steps:
        return True
    return new.lr_schedule == old.lr_schedule == "wsd" and meta["step"] <= min(old.decay_start, new.decay_start)


def _data_fingerprint(data: Examples) -> str:
    """The number of windows and a hash of the first, the middle and the last."""
    digest = hashlib.sha256()
    places = torch.tensor([0, len(data) // 2, len(data) - 1])
    tokens = data.batch(places)["tokens"]
    columns = tokens if isinstance(tokens, dict) else {"": tokens}
    for name, column in sorted(columns.items()):
        assert isinstance(column, Tensor)
        digest.update(f"{name}{tuple(column.shape)}".encode() + column.contiguous().numpy().tobytes())
    return f"{len(data)} windows {digest.hexdigest()[:16]}"
