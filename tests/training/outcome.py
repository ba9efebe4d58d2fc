"""What a run left behind, and data that stand for a crash."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from training.small_run import Ragged
from unmask.data.tokenizers import Tokenizer
from unmask.training.state import saved_states


def files(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the last training checkpoint and of the exported model."""
    found = {}
    for path in (*sorted(saved_states(folder / "training")[-1].glob("*.safetensors")), folder / "model.safetensors"):
        tensors = safetensors.torch.load_file(path)
        found |= {f"{path.parent.name == folder.name}/{path.stem}/{name}": value for name, value in tensors.items()}
    return found


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


class CrashError(Exception):
    """Stands for a crash."""


class Failing(Ragged):
    """Fails when it is asked for the batch of a given call."""

    def __init__(self, tokens: Tokenizer, call: int) -> None:
        super().__init__(tokens)
        self.left = call

    def batch(self, indices: Tensor) -> dict[str, Tensor | None]:
        self.left -= 1
        if self.left < -1:  # the first call is the fingerprint's
            raise CrashError
        return super().batch(indices)
