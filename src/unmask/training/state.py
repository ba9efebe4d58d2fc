"""Training checkpoints: complete folders of safetensors and JSON, or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from unmask.errors import UserError

FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{9})")
_HIDDEN = (".writing-", ".discarded-")
Tensors = dict[str, dict[str, Tensor]]


def saved_states(folder: Path) -> list[Path]:
    """The complete training checkpoints in `folder`, oldest first: a folder gets its name once it is whole."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The number of optimizer steps behind a training checkpoint."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"step_of: {path} is not a training checkpoint, wanted a folder named step-000000123")
    return int(match[1])


def write_state(folder: Path, step: int, tensors: Tensors, meta: dict[str, Any], *, keep: int = 2) -> Path:
    """Write one training checkpoint and drop all but the last `keep`.

    Everything goes to a hidden folder, is synced to disk and then renamed, so a kill at any moment leaves either the
    whole new checkpoint or only the earlier ones.

    Args:
        folder: holds the checkpoints.
        step: optimizer steps done.
        tensors: one safetensors file for each key.
        meta: JSON values, kept in state.json.

    Raises:
        UserError: the disk is full or not writable; the earlier checkpoints are left as they were.
    """
    final = folder / f"step-{step:09d}"
    if final.exists():
        return final
    hidden = folder / f"{_HIDDEN[0]}{final.name}"
    try:
        hidden.mkdir(parents=True)
        for name, group in tensors.items():
            safetensors.torch.save_file(group, hidden / f"{name}.safetensors")
        text = json.dumps({"format_version": FORMAT_VERSION, "step": step, **meta}, indent=1)
        (hidden / "state.json").write_text(text, encoding="utf-8")
        for path in (*hidden.iterdir(), hidden):
            sync(path)
        hidden.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(hidden, ignore_errors=True)
        earlier = saved_states(folder)
        intact = f"{earlier[-1].name} is intact" if earlier else "there is no earlier one"
        raise UserError(
            f"writing the training checkpoint of step {step} to {folder}: {error}; {intact}. "
            "Free some space and resume the run"
        ) from error
    for old in saved_states(folder)[:-keep]:
        _discard(old)
    return final


def read_state(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors (on the CPU) and the meta data of a training checkpoint.

    Raises:
        UserError: a file is missing, unreadable or of another format.
    """
    try:
        meta = json.loads((path / "state.json").read_text(encoding="utf-8"))
        files = sorted(path.glob("*.safetensors"))
        tensors = {file.stem: safetensors.torch.load_file(file) for file in files}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"reading the training checkpoint {path}: {error}; with several machines the folder must be on a disk they "
            "share. Delete this folder to resume from the one before it"
        ) from error
    if meta.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"reading the training checkpoint {path}: format {meta.get('format_version')}, wanted {FORMAT_VERSION}; "
            "resume with the version of unmask that wrote it"
        )
    return tensors, meta


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written or half-deleted."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(_HIDDEN):
                shutil.rmtree(path, ignore_errors=True)


def _discard(path: Path) -> None:
    """Delete a checkpoint so that a kill in between does not leave a part of it under its name."""
    hidden = path.with_name(f"{_HIDDEN[1]}{path.name}")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
