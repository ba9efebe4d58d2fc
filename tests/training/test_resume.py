"""A run goes on where it was stopped, bit for bit, or says why it may not."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from training.outcome import CrashError, Failing, assert_same, files
from training.small_run import TEXTS, Ragged, tokenizer, trainer, windows
from unmask.data.tokenizers import Tokenizer
from unmask.errors import UserError
from unmask.training.log import read_metrics
from unmask.training.state import saved_states, step_of

TIMINGS = ("tokens_per_second",)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(tmp_path: Path, precision: Any) -> None:
    options: dict[str, Any] = {"dropout": 0.2, "mixed_precision": precision, "steps": 10, "log_every": 4}
    evaluated = lambda denoiser: {"draw": float(torch.rand(()))}  # noqa: E731  (disturbs torch's generator)
    trainer(tmp_path / "a", **options).run()
    broken = trainer(tmp_path / "b", Failing(tokenizer(), 6), **options, eval_every=3)
    broken.evaluate = evaluated
    with pytest.raises(CrashError):
        broken.run()
    assert step_of(saved_states(tmp_path / "b" / "training")[-1]) == 4
    result = trainer(tmp_path / "b", **options).run(resume=True)
    assert result.step == 10
    assert_same(files(tmp_path / "a"), files(tmp_path / "b"))
    a, b = (
        [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_metrics(tmp_path / x) if "tokens" in row]
        for x in "ab"
    )
    assert [row["step"] for row in b] == [4, 8, 10]
    assert a == b


def test_a_resumed_run_depends_on_all_that_was_saved(tmp_path: Path) -> None:
    """Without the optimizer's moments the bits differ: the test above can see a forgotten part."""
    trainer(tmp_path / "a").run()
    with pytest.raises(CrashError):
        trainer(tmp_path / "b", Failing(tokenizer(), 6)).run()
    (saved_states(tmp_path / "b" / "training")[-1] / "optimizer.safetensors").unlink()
    trainer(tmp_path / "b").run(resume=True)
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_a_used_folder_is_refused_or_replaced(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(UserError, match=r"already holds a run .*--resume.*--overwrite"):
        trainer(tmp_path).run()
    with pytest.raises(UserError, match="exclude each other"):
        trainer(tmp_path).run(resume=True, overwrite=True)
    assert step_of(saved_states(tmp_path / "training")[-1]) == 12
    (tmp_path / "notes.txt").write_text("mine")
    trainer(tmp_path, steps=5, seed=3).run(overwrite=True)
    assert [step_of(path) for path in saved_states(tmp_path / "training")] == [4, 5]
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, 5]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_finished_run_resumes_to_itself_and_mends_its_export(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    before = files(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert trainer(tmp_path).run(resume=True).step == 12
    assert_same(before, files(tmp_path))


def test_resuming_an_empty_folder_starts_at_the_beginning(tmp_path: Path) -> None:
    assert trainer(tmp_path / "new").run(resume=True).step == 12


def test_changed_settings_are_named(tmp_path: Path) -> None:
    trainer(tmp_path, steps=4).run()
    with pytest.raises(UserError) as error:
        trainer(tmp_path, steps=4, learning_rate=0.5, seed=7, log_every=1, micro_batch_size=2).run(resume=True)
    text = str(error.value)
    assert "learning_rate=0.01 became 0.5" in text
    assert "seed=0 became 7" in text
    assert "log_every" not in text
    assert "micro_batch_size" not in text


def test_other_data_loss_and_network_are_named(tmp_path: Path) -> None:
    trainer(tmp_path, steps=4).run()
    with pytest.raises(UserError, match=r"the data 20 windows \w+ became \d+ windows \w+"):
        trainer(tmp_path, windows(tmp_path.parent / "other"), steps=4).run(resume=True)
    other = trainer(tmp_path, steps=4)
    other.checkpoint.denoiser.net.blocks = other.checkpoint.denoiser.net.blocks[:1]
    with pytest.raises(UserError, match="weights of the checkpoint do not fit this network"):
        other.run(resume=True)


def test_another_tokenizer_is_named_with_both_fingerprints(tmp_path: Path) -> None:
    trainer(tmp_path, steps=4).run()
    other = Tokenizer.characters([*TEXTS[:2], TEXTS[2].replace("k", "z")])
    run = trainer(tmp_path, steps=4)
    run.checkpoint = dataclasses.replace(run.checkpoint, tokenizer=other)
    wanted = f"the tokenizer {tokenizer().fingerprint()} became {other.fingerprint()}"
    with pytest.raises(UserError, match=wanted):
        run.run(resume=True)


def test_steps_may_be_extended_before_the_decay_of_wsd_only(tmp_path: Path) -> None:
    wsd = {"lr_schedule": "wsd", "wsd_decay_fraction": 0.5, "checkpoint_every": 2}
    with pytest.raises(CrashError):
        trainer(tmp_path / "b", Failing(tokenizer(), 5), steps=10, **wsd).run()
    trainer(tmp_path / "b", steps=16, **wsd).run(resume=True)
    trainer(tmp_path / "a", steps=16, **wsd).run()
    assert_same(files(tmp_path / "a"), files(tmp_path / "b"))
    with pytest.raises(UserError, match=r"steps=16 became 20"):
        trainer(tmp_path / "b", steps=20, **wsd).run(resume=True)
    trainer(tmp_path / "c", steps=4).run()
    with pytest.raises(UserError, match=r"steps=4 became 8"):
        trainer(tmp_path / "c", steps=8).run(resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_finishes_the_step_and_can_be_resumed(
    tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting(Ragged):
        calls = 0

        def batch(self, indices: Tensor) -> dict[str, Tensor | None]:
            self.calls += 1
            if self.calls == 7:  # during step 6, the first call being the fingerprint's
                os.kill(os.getpid(), number)
            return super().batch(indices)

    before = signal.getsignal(number)
    result = trainer(tmp_path / "b", Interrupting(tokenizer())).run()
    assert result.interrupted
    assert result.step == step_of(saved_states(tmp_path / "b" / "training")[-1]) == 6
    assert signal.getsignal(number) == before
    assert "--resume" in capsys.readouterr().err
    assert not trainer(tmp_path / "b").run(resume=True).interrupted
    trainer(tmp_path / "a").run()
    assert_same(files(tmp_path / "a"), files(tmp_path / "b"))


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = safetensors.torch.save_file

    def full(tensors: Any, path: Path, **options: Any) -> None:
        if "step-000000008" in str(path) and "optimizer" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole(tensors, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match=r"step 8 .*No space left on device; step-000000004 is intact"):
        trainer(tmp_path / "b").run()
    assert [path.name for path in (tmp_path / "b" / "training").iterdir()] == ["step-000000004"]
    monkeypatch.undo()
    trainer(tmp_path / "b").run(resume=True)
    trainer(tmp_path / "a").run()
    assert_same(files(tmp_path / "a"), files(tmp_path / "b"))
