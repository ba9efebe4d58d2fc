"""A whole run: what it writes, and what stops it."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from training.small_run import LENGTH, Ragged, checkpoint, tokenizer, trainer, windows
from unmask.checkpoint import Checkpoint, load_checkpoint
from unmask.data.cache import TokenDataset
from unmask.errors import UserError
from unmask.training import state
from unmask.training.log import read_metrics
from unmask.training.state import saved_states, step_of
from unmask.training.trainer import Trainer


def test_the_exported_model_is_the_average_that_was_evaluated(tmp_path: Path) -> None:
    seen = []

    def evaluate(denoiser: Any) -> dict[str, float]:
        assert not denoiser.training
        assert not torch.is_grad_enabled()
        seen.append({name: p.clone() for name, p in denoiser.named_parameters()})
        return {"held_out": 1.5}

    run = trainer(tmp_path, windows(tmp_path.parent / "tokens"), eval_every=12, dropout=0.1)
    run.evaluate, run.sample = evaluate, lambda denoiser: "a sample"
    result = run.run()
    loaded = load_checkpoint(tmp_path)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.fingerprint() == tokenizer().fingerprint()
    assert loaded.card["training"]["step"] == 12
    assert loaded.card["data"] == "three sentences"
    live = dict(run.checkpoint.denoiser.named_parameters())
    average = safetensors.torch.load_file(saved_states(tmp_path / "training")[-1] / "ema.safetensors")
    assert result.checkpoint is not None
    for name, p in loaded.denoiser.named_parameters():
        assert torch.equal(p, seen[-1][name])
        assert torch.equal(p, average[name])
        assert torch.equal(p, dict(result.checkpoint.denoiser.named_parameters())[name])
        assert not torch.equal(p, live[name])
    last = read_metrics(tmp_path)[-1]
    assert last["held_out"] == result.metrics["held_out"] == 1.5
    assert last["sample"] == "a sample"


def test_without_an_average_the_live_weights_are_exported(tmp_path: Path) -> None:
    run = trainer(tmp_path, ema_decay=None)
    run.run()
    exported = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(p, exported[name]) for name, p in run.checkpoint.denoiser.named_parameters())


def test_training_learns(tmp_path: Path) -> None:
    data = TokenDataset.build(["abc " * 120], tokenizer(), tmp_path / "tokens").windows(LENGTH)
    options: dict[str, Any] = {"steps": 60, "batch_size": 16, "checkpoint_every": None, "log_every": 10}
    trainer(tmp_path / "run", data, **options).run()
    curve = [row["nats_per_token"] for row in read_metrics(tmp_path / "run")]
    assert curve[-1] < 0.7 * curve[0]


def test_logged_loss_is_nats_over_real_tokens(tmp_path: Path) -> None:
    """Two log lines of one step each, against the loss computed by hand from the weights in between."""
    run = trainer(tmp_path, steps=2, log_every=1, warmup_steps=0, batch_size=20)
    run.run()
    rows = read_metrics(tmp_path)
    lengths = 3 + (torch.arange(20) * 7) % 10
    assert [row["tokens"] for row in rows] == [int(lengths.sum()), 2 * int(lengths.sum())]
    fresh = trainer(tmp_path / "other", batch_size=20)
    from unmask import Rng
    from unmask.training.stream import Stream

    data = Ragged(tokenizer())
    batch = data.batch(Stream(20, 0).examples(torch.arange(20)))
    rng = Rng(0).fold(0).rows(torch.arange(20))
    nats = fresh.loss(fresh.checkpoint.denoiser, batch["tokens"], rng, attention_mask=batch["attention_mask"]).sum()
    assert rows[0]["nats_per_token"] == pytest.approx(float(nats.detach()) / int(lengths.sum()), rel=1e-6)


def test_a_run_outside_the_main_thread_works(tmp_path: Path) -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(trainer(tmp_path, steps=4).run().step))
    thread.start()
    thread.join()
    assert done == [4]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    class Poisoned:
        calls = 0

        def __init__(self, loss: Any) -> None:
            self.loss = loss

        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            nats = self.loss(*args, **kwargs)
            self.calls += 1
            return nats * torch.nan if self.calls == 7 else nats

        def __repr__(self) -> str:
            return "poisoned"

    run = trainer(tmp_path, log_every=5)
    object.__setattr__(run, "loss", _as_loss(Poisoned(run.loss)))
    with pytest.raises(UserError, match=r"not finite in step 6 \(counted from 0\); the checkpoint step-000000004"):
        run.run()
    assert [step_of(path) for path in saved_states(tmp_path / "training")] == [4]


def _as_loss(call: Any) -> Any:
    from unmask.loss import Loss

    kind = type("Poisoned", (Loss,), {"__call__": lambda self, *a, **k: call(*a, **k), "__repr__": lambda self: "p"})
    return kind()


def test_a_checkpoint_falls_due_by_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("unmask.training.trainer.time.monotonic", lambda: float(next(clock)))
    written: list[int] = []
    write = state.write_state
    monkeypatch.setattr(
        "unmask.training.trainer.write_state",
        lambda folder, step, *rest: written.append(step) or write(folder, step, *rest),
    )
    trainer(tmp_path, checkpoint_every=None, checkpoint_seconds=5.0, log_every=100).run()
    assert len(written) >= 2
    assert written[-1] == 12


def test_a_network_that_cannot_be_exported_is_refused_before_the_first_step(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    del run.checkpoint.denoiser.net.config
    with pytest.raises(UserError, match=r"exporting the model .*NetworkConfig"):
        run.run()
    assert not (tmp_path / "training").exists()


def test_batch_that_processes_cannot_share_and_lost_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(Ragged):
        def __len__(self) -> int:
            return 0

    with pytest.raises(UserError, match="holds no window"):
        trainer(tmp_path / "a", Empty(tokenizer())).run()

    from unmask.training.launch import check_launch, make_accelerator

    run = trainer(tmp_path / "b", batch_size=8)
    alone = make_accelerator(run.config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched, but the Accelerator sees 1"):
        check_launch(run.data, run.config, alone)
    monkeypatch.setenv("WORLD_SIZE", "3")
    kind = type("Kind", (), {"value": "MULTI_GPU"})
    three = type("Three", (), {"num_processes": 3, "distributed_type": kind})
    with pytest.raises(UserError, match="batch_size=8 sequences do not divide among 3"):
        check_launch(run.data, run.config, three)
    kind.value = "DEEPSPEED"
    with pytest.raises(UserError, match="DeepSpeed"):
        check_launch(Ragged(tokenizer()), dataclasses.replace(run.config, batch_size=9), three)
    kind.value, three.is_fsdp2 = "FSDP", False
    with pytest.raises(UserError, match="FSDP version 1"):
        check_launch(Ragged(tokenizer()), dataclasses.replace(run.config, batch_size=9), three)


def test_tensorboard_and_a_torn_line_of_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path, steps=6, tensorboard=True).run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("nats_per_token")] == [3, 6]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "nats')
    trainer(tmp_path, steps=6).run(resume=True)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [3, 6]


def test_the_bar_tells_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, steps=6)
    run.progress = True
    run.run()
    assert "nats_per_token=" in capsys.readouterr().err
    silent = trainer(tmp_path / "silent", steps=6)
    silent.run()
    assert capsys.readouterr().err == ""


def test_the_trained_denoiser_is_a_copy_on_the_main_process(tmp_path: Path) -> None:
    run: Trainer = trainer(tmp_path, steps=2)
    result = run.run()
    assert isinstance(result.checkpoint, Checkpoint)
    assert result.checkpoint.denoiser is not run.checkpoint.denoiser
    assert checkpoint(tokenizer()).process == result.checkpoint.process
