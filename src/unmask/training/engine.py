"""One optimizer step, the same in every topology, on top of Accelerate."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from unmask.denoiser import Denoiser
from unmask.loss import Loss
from unmask.rng import Rng
from unmask.training.config import TrainingConfig
from unmask.training.launch import check_launch
from unmask.training.optim import Ema, learning_rate_factor, parameter_groups
from unmask.training.sharding import copy_into, parameters_by_name, shard_like, whole
from unmask.training.state import Tensors
from unmask.training.stream import Examples, Stream
from unmask.training.tally import Tally, Totals

_DROPOUT = 12


class _Objective(nn.Module):
    """Loss and denoiser as one module, so that the lazy head too runs inside the forward that DDP and FSDP wrap."""

    def __init__(self, denoiser: Denoiser, loss: Loss) -> None:
        super().__init__()
        self.denoiser, self.loss = denoiser, loss

    def forward(self, x0: Any, rng: Rng, cond: dict[str, Any]) -> Tensor:
        nats = self.loss(self.denoiser, x0, rng, **cond)
        if nats.requires_grad:
            return nats
        # No site was corrupted: DDP still waits for a (zero) gradient of every weight.
        return nats + 0.0 * sum(p.sum() for p in self.denoiser.parameters() if p.requires_grad)


class Engine:
    """Model, optimizer and moving average, with one verb: `step(k)`.

    Step k consumes the stream positions [k B, (k+1) B), B = batch_size: process r takes the r-th contiguous slice and
    cuts it into micro-batches. The gradient is that of

        (sum of the nats of all B examples) / (number of real tokens of all B examples),

    and the corruption of an example is keyed by (seed, k, its stream position): neither depends on the topology.

    Args:
        denoiser: trained in place.
        loss: nats per example.
        data: the examples.
        config: the run.
        accelerator: of Hugging Face Accelerate.

    Raises:
        UserError: batch_size does not divide among the processes, no data, or an engine without exact checkpoints.
    """

    def __init__(
        self, denoiser: Denoiser, loss: Loss, data: Examples, config: TrainingConfig, accelerator: Any
    ) -> None:
        check_launch(data, config, accelerator)
        self.config, self.data, self.accelerator = config, data, accelerator
        self.stream = Stream(len(data), config.seed)
        self.objective = _Objective(denoiser, loss)
        if config.compile:
            net = getattr(denoiser, "net", denoiser)
            net.compile()
        groups = parameter_groups(denoiser, config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self.model, self.optimizer = accelerator.prepare(self.objective, optimizer)
        self.ema = None if config.ema_decay is None else Ema(self.parameters(), config.ema_decay)
        self._tally = Tally(accelerator.device)

    def parameters(self) -> dict[str, Tensor]:
        """The live weights by name, each tied one once."""
        return parameters_by_name(self.objective.denoiser)

    def step(self, k: int) -> None:
        """Optimizer step `k`, counted from 0. Nothing is copied back to the host."""
        config, accelerator = self.config, self.accelerator
        positions = self._positions(k)
        batches = [self.data.batch(self.stream.examples(rows)) for rows in positions]
        count = torch.stack([_count_tokens(batch) for batch in batches]).sum()
        tokens = accelerator.reduce(count.to(accelerator.device), "sum")
        # DDP and FSDP average over processes what this loss sums.
        scale = accelerator.num_processes / tokens.clamp(min=1)
        self.optimizer.zero_grad()
        step_nats = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        for i, (rows, batch) in enumerate(zip(positions, batches, strict=True)):
            last = i == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                nats = self._nats(k, rows, batch).sum()
                accelerator.backward(nats * scale)
            step_nats += nats.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or torch.inf)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(k, config)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(k, self.parameters())
        self._tally.add(k, step_nats, tokens, whole(norm))

    def totals(self) -> Totals:
        """Sums since the last call; the one place that waits for the device. Every process must call it together."""
        return self._tally.take(self.accelerator)

    def weights(self) -> dict[str, Tensor]:
        """What to evaluate and export, whole and on the CPU: the moving average if there is one. Collective."""
        return self._gather({**self._live(), **(self.ema.average if self.ema else {})})

    def state(self) -> Tensors:
        """All that a resumed run needs, whole and on the CPU of the main process. Collective."""
        slots = {
            f"{name}/{slot}": value
            for name, p in self.parameters().items()
            for slot, value in self.optimizer.state.get(p, {}).items()
        }
        groups = {"model": self._live(), "optimizer": slots}
        if self.ema is not None:
            groups["ema"] = self.ema.average
        return {name: self._gather(group) for name, group in groups.items()}

    @torch.no_grad()
    def load(self, tensors: Tensors) -> None:
        """Take over what `state` gave.

        Raises:
            UserError: the tensors are those of another network or optimizer.
        """
        copy_into(self._live(), tensors.get("model", {}), "weights")
        if self.ema is not None:
            copy_into(self.ema.average, tensors.get("ema", {}), "moving average")
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        parameters = self.parameters()
        for key, value in tensors.get("optimizer", {}).items():
            name, slot = key.rsplit("/", 1)
            p = parameters[name]
            moment = value.ndim > 0 and value.shape == p.shape
            inner.state[p][slot] = shard_like(value, p) if moment else value.to(p.device)

    def _positions(self, k: int) -> tuple[Tensor, ...]:
        local = self.config.batch_size // self.accelerator.num_processes
        start = k * self.config.batch_size + self.accelerator.process_index * local
        return torch.arange(start, start + local).split(self.config.micro_batch_size or local)

    def _nats(self, k: int, rows: Tensor, batch: dict[str, Any]) -> Tensor:
        rng = Rng(self.config.seed).fold(k)
        # Dropout draws from torch's generator: seeded here, it needs no saving and no evaluation can disturb it.
        torch.manual_seed(int(rng.fold(_DROPOUT, int(rows[0])).scalar() * 2**53))
        device = self.accelerator.device
        cond = {name: _to(value, device) for name, value in batch.items() if value is not None}
        x0 = cond.pop("tokens")
        return self.model(x0, rng.rows(rows.to(device)), cond)

    def _live(self) -> dict[str, Tensor]:
        denoiser = self.objective.denoiser
        kept = denoiser.state_dict().keys()
        buffers = {name: b for name, b in denoiser.named_buffers() if name in kept}
        return {**self.parameters(), **buffers}

    def _gather(self, group: dict[str, Tensor]) -> dict[str, Tensor]:
        gathered = {}
        for name, value in group.items():
            full = whole(value)
            if self.accelerator.is_main_process:
                gathered[name] = full.cpu().contiguous()
        return gathered


def _count_tokens(batch: dict[str, Any]) -> Tensor:
    mask = batch.get("attention_mask")
    if mask is not None:
        return mask.sum()
    tokens = batch["tokens"]
    columns = tokens.values() if isinstance(tokens, dict) else (tokens,)
    return torch.tensor(sum(column.numel() for column in columns))


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _to(item, device) for name, item in value.items()}
    return value.to(device, non_blocking=True)
