"""Training checkpoints are whole or absent, and the last two are kept."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from unmask.errors import UserError
from unmask.training.state import read_state, remove_leftovers, saved_states, step_of, write_state

TENSORS = {"model": {"w": torch.arange(6.0).view(2, 3)}, "optimizer": {"w/step": torch.tensor(3.0)}}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write_state(tmp_path / "training", 7, TENSORS, {"tokens": 99})
    tensors, meta = read_state(path)
    assert step_of(path) == meta["step"] == 7
    assert meta["tokens"] == 99
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(value, tensors[group][name]) for group, of in TENSORS.items() for name, value in of.items())


def test_the_last_two_are_kept_in_order_of_steps(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write_state(tmp_path, step, TENSORS, {})
    assert [step_of(path) for path in saved_states(tmp_path)] == [10, 100]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses to let any file grow beyond 64 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_cannot_grow_leaves_the_earlier_checkpoint(tmp_path: Path, small_files: None) -> None:
    write_state(tmp_path, 1, TENSORS, {})
    large = {"model": {"w": torch.zeros(100_000)}}
    with pytest.raises(UserError, match=r"checkpoint of step 2 .*step-000000001 is intact\. Free some space") as error:
        write_state(tmp_path, 2, large, {})
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    read_state(tmp_path / "step-000000001")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match="No space left on device; there is no earlier one"):
        write_state(tmp_path, 1, TENSORS, {})
    assert list(tmp_path.iterdir()) == []


def test_a_pruning_that_is_killed_leaves_no_part_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, **_: object) -> None:
        next(Path(path).iterdir()).unlink()
        raise KeyboardInterrupt

    for step in (1, 2):
        write_state(tmp_path, step, TENSORS, {})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write_state(tmp_path, 3, TENSORS, {})
    for path in saved_states(tmp_path):
        assert read_state(path)[0].keys() == TENSORS.keys()
    assert [step_of(path) for path in saved_states(tmp_path)] == [2, 3]
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "missing", "newer"])
def test_damage_is_told(tmp_path: Path, damage: str) -> None:
    path = write_state(tmp_path, 5, TENSORS, {})
    if damage == "cut":
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "missing":
        (path / "state.json").unlink()
    else:
        (path / "state.json").write_text('{"format_version": 2, "step": 5}')
    with pytest.raises(UserError, match=r"reading the training checkpoint .*step-000000005"):
        read_state(path)
