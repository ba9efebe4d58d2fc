"""Training from the first step to the last, across kills."""

from __future__ import annotations

import copy
import dataclasses
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.checkpoint import Checkpoint
from unmask.denoiser import Denoiser
from unmask.errors import UserError
from unmask.loss import Loss
from unmask.training.config import TrainingConfig
from unmask.training.engine import Engine
from unmask.training.export import export_checkpoint
from unmask.training.interrupt import interruptions
from unmask.training.launch import make_accelerator
from unmask.training.log import RunLog
from unmask.training.optim import learning_rate_factor
from unmask.training.resume import check_resumable, describe_run, prepare_folder
from unmask.training.state import read_state, saved_states, write_state
from unmask.training.stream import Examples
from unmask.training.tally import Totals


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended.

    Args:
        step: optimizer steps done.
        interrupted: stopped by Ctrl-C or SIGTERM before the last step; a checkpoint was written.
        checkpoint: the trained model (with the moving average's weights, if kept), on the CPU; None on all processes
            but the main one.
        metrics: what `evaluate` last gave.
    """

    step: int
    interrupted: bool
    checkpoint: Checkpoint | None
    metrics: dict[str, float]


@dataclass(kw_only=True)
class Trainer:
    """Trains the denoiser of a checkpoint on one process or on many, and survives being killed.

    The folder of a run is a checkpoint that can be used at any time (config.json, model.safetensors, tokenizer.json,
    rewritten at each training checkpoint), with metrics.jsonl and, in training/, the last two training checkpoints:
    weights, moving average and optimizer. Everything random is a function of the seed and the step, so a resumed run
    on one process gives bit for bit the weights of one that never stopped.

    Args:
        checkpoint: what is trained: process, denoiser (in place), tokenizer and card.
        loss: nats per example; the gradient is that of their sum over the global number of real tokens.
        data: the training windows; `batch(indices)` gives "tokens", "attention_mask" and further conditions.
        config: the numbers of the run.
        folder: where the run lives; with several machines, on a disk that they share.
        evaluate: held-out figures of a denoiser (in evaluation mode, without gradients), by name. Main process only.
        sample: a sample of a denoiser to look at. Main process only.
        progress: show a progress bar.
        accelerator: an Accelerator of your own, instead of the one that the launcher's environment describes.
    """

    checkpoint: Checkpoint
    loss: Loss
    data: Examples
    config: TrainingConfig
    folder: str | Path
    evaluate: Callable[[Denoiser], dict[str, float]] | None = None
    sample: Callable[[Denoiser], str] | None = None
    progress: bool = True
    accelerator: Any = None

    def run(self, *, resume: bool = False, overwrite: bool = False) -> TrainingResult:
        """Train to the last step, or to an interruption.

        Args:
            resume: go on from the last training checkpoint in `folder`, or from the start if there is none.
            overwrite: delete the run that is in `folder`.

        Raises:
            UserError: the folder holds a run and neither option is given; the run to resume had other settings, data
                or tokenizer; the loss is not finite; the disk is full.
        """
        return _Run(self).run(resume=resume, overwrite=overwrite)


class _Run:
    """The mutable side of one `Trainer.run`."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.folder = Path(trainer.folder)
        self.states = self.folder / "training"
        self.accelerator = trainer.accelerator or make_accelerator(trainer.config)
        self.main = self.accelerator.is_main_process
        self.step = self.tokens = 0
        self.window = (0.0, 0)  # nats and tokens since the last line of metrics
        self.metrics: dict[str, float] = {}
        self.log: RunLog | None = None
        self.saved_at = self.reported_at = time.monotonic()

    def run(self, *, resume: bool, overwrite: bool) -> TrainingResult:
        trainer, config = self.trainer, self.trainer.config
        prepare_folder(self.folder, self.accelerator, resume=resume, overwrite=overwrite)
        denoiser = trainer.checkpoint.denoiser
        self.exported = copy.deepcopy(denoiser).cpu().eval() if self.main else None
        self.engine = Engine(denoiser.train(), trainer.loss, trainer.data, config, self.accelerator)
        self.identity = describe_run(trainer.checkpoint, trainer.loss, trainer.data, config)
        if resume and (states := saved_states(self.states)):
            self._resume(states[-1])
        elif self.exported is not None:
            self._write_export(self.exported, dry=True)
        if self.main:
            outputs = {"tensorboard": config.tensorboard, "progress": trainer.progress}
            self.log = RunLog(self.folder, start=self.step, steps=config.steps, **outputs)
        try:
            with interruptions() as interrupted:
                stopped = self._loop(interrupted)
        finally:
            if self.log is not None:
                self.log.close()
        if stopped and self.main:
            sys.stderr.write(f"stopped after step {self.step} with a checkpoint; go on with --resume\n")
        return self._result(stopped)

    def _resume(self, path: Path) -> None:
        tensors, meta = read_state(path)
        check_resumable(meta, self.identity, path)
        self.engine.load(tensors)
        self.step, self.tokens, self.metrics = int(meta["step"]), int(meta["tokens"]), dict(meta["metrics"])
        self.window = (float(meta["window"][0]), int(meta["window"][1]))
        denoiser = self._export()
        if denoiser is not None:  # the kill may have come between the checkpoint and its export
            self._write_export(denoiser)

    def _loop(self, interrupted: threading.Event) -> bool:
        config = self.trainer.config
        while self.step < config.steps:
            self.engine.step(self.step)
            self.step += 1
            if self.log is not None:
                self.log.advance()
            stop, overdue = self._agree(interrupted)
            row = self._report() if self._at(config.log_every) else {}
            self._evaluate(row)
            if row and self.log is not None:
                self.log.write({"step": self.step, **row})
            if stop or overdue or self._at(config.checkpoint_every):
                self._save()
            if stop and self.step < config.steps:
                return True
        return False

    def _at(self, every: int | None) -> bool:
        return self.step == self.trainer.config.steps or (every is not None and self.step % every == 0)

    def _agree(self, interrupted: threading.Event) -> tuple[bool, bool]:
        """Whether to stop, and whether a checkpoint is overdue: the same answer on every process."""
        config, accelerator = self.trainer.config, self.accelerator
        limit = config.checkpoint_seconds
        overdue = self.main and limit is not None and time.monotonic() - self.saved_at >= limit
        if accelerator.num_processes == 1:
            return interrupted.is_set(), overdue
        if not self._at(config.log_every):  # asking the others costs a wait for the device
            return False, False
        flags = torch.tensor([interrupted.is_set(), overdue], dtype=torch.int64, device=accelerator.device)
        stop, late = (accelerator.reduce(flags, "sum") > 0).tolist()
        return stop, late

    def _report(self) -> dict[str, Any]:
        config = self.trainer.config
        totals = self._collect()
        nats, tokens, self.window = self.window[0], self.window[1], (0.0, 0)
        now = time.monotonic()
        seconds, self.reported_at = now - self.reported_at, now
        return {
            "nats_per_token": nats / max(tokens, 1),
            "grad_norm": totals.grad_norm,
            "learning_rate": config.learning_rate * learning_rate_factor(self.step - 1, config),
            "tokens": self.tokens,
            "tokens_per_second": tokens / max(seconds, 1e-9),
        }

    def _collect(self) -> Totals:
        """Fetch what the device has counted, and refuse to go on from a step that was not finite. Collective."""
        totals = self.engine.totals()
        if totals.bad_step >= 0:
            states = saved_states(self.states)
            good = f"the checkpoint {states[-1].name} is intact" if states else "no checkpoint was written yet"
            raise UserError(
                f"training: the loss or its gradient is not finite in step {totals.bad_step} (counted from 0); {good}. "
                "Lower the learning rate, lengthen the warm-up or clip the gradient (max_grad_norm)"
            )
        self.tokens += totals.tokens
        self.window = (self.window[0] + totals.nats, self.window[1] + totals.tokens)
        return totals

    def _evaluate(self, row: dict[str, Any]) -> None:
        """Add the held-out figures and the sample to the row, where they are due."""
        trainer, config = self.trainer, self.trainer.config
        evaluate = trainer.evaluate if self._at(config.eval_every) else None
        sample = trainer.sample if self._at(config.sample_every) else None
        if evaluate is None and sample is None:
            return
        began = time.monotonic()
        denoiser = self._export()
        if denoiser is not None:
            device = self.accelerator.device
            with torch.no_grad():
                denoiser.to(device)
                if evaluate is not None:
                    self.metrics = dict(evaluate(denoiser))
                    row.update(self.metrics)
                if sample is not None:
                    row["sample"] = sample(denoiser)
                denoiser.cpu()
        self.accelerator.wait_for_everyone()
        self.reported_at += time.monotonic() - began

    def _export(self) -> Denoiser | None:
        """The weights to use, in the main process's own copy of the denoiser. Collective."""
        weights = self.engine.weights()
        if self.exported is not None:
            # Not strict: tied weights come under the first of their names only.
            extra = self.exported.load_state_dict(weights, strict=False).unexpected_keys
            if extra:
                raise RuntimeError(f"exporting: the network has no {extra[0]}; a wrapper changed its parameters' names")
        return self.exported

    def _save(self) -> None:
        began = time.monotonic()
        self._collect()
        tensors = self.engine.state()
        denoiser = self._export()
        if denoiser is not None:
            meta = {"tokens": self.tokens, "window": self.window, "metrics": self.metrics, **self.identity}
            write_state(self.states, self.step, tensors, meta)
            self._write_export(denoiser)
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()
        self.reported_at += self.saved_at - began

    def _write_export(self, denoiser: Denoiser, *, dry: bool = False) -> None:
        trained = {"step": self.step, "tokens": self.tokens, **dataclasses.asdict(self.trainer.config), **self.metrics}
        checkpoint = self.trainer.checkpoint
        card = {**checkpoint.card, "training": trained}
        export_checkpoint(self.folder, dataclasses.replace(checkpoint, denoiser=denoiser, card=card), dry=dry)

    def _result(self, stopped: bool) -> TrainingResult:
        denoiser = self._export()
        done = None
        if denoiser is not None:
            done = dataclasses.replace(self.trainer.checkpoint, denoiser=denoiser)
        return TrainingResult(step=self.step, interrupted=stopped, checkpoint=done, metrics=self.metrics)
