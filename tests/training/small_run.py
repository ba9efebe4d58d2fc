"""A run that takes milliseconds a step.

As a script, one process of a distributed run that is crashed and resumed: small_run.py KIND FOLDER NUMBERS.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor

from unmask.checkpoint import Checkpoint
from unmask.data.cache import TokenDataset, WindowDataset
from unmask.data.tokenizers import Tokenizer
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.nn.transformer import Transformer, TransformerConfig
from unmask.processes.masked import Masked
from unmask.training.config import TrainingConfig
from unmask.training.state import saved_states
from unmask.training.trainer import Trainer

LENGTH = 12
TEXTS = ["the cat sat on the mat. ", "a dog ran to the sea and back. ", "no one saw the old red kite. "]


class Ragged:
    """Twenty rows of random letters whose real lengths run from 3 to 12."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        generator = torch.Generator().manual_seed(1)
        self.rows = torch.randint(0, tokenizer.vocab_size - 3, (20, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> dict[str, Tensor | None]:
        real = torch.arange(LENGTH) < 3 + (indices[:, None] * 7) % 10
        return {"tokens": self.rows[indices], "attention_mask": real, "document_ids": None}


def tokenizer() -> Tokenizer:
    return Tokenizer.characters(TEXTS)


def windows(folder: Path) -> WindowDataset:
    return TokenDataset.build(TEXTS * 4, tokenizer(), folder).windows(LENGTH)


def checkpoint(tokens: Tokenizer, dropout: float = 0.0) -> Checkpoint:
    torch.manual_seed(0)
    shape = {"vocab_size": tokens.vocab_size, "dim": 16, "num_layers": 2, "num_heads": 2, "max_length": LENGTH}
    net = Transformer(TransformerConfig(**shape, dropout=dropout))
    process = Masked(vocab_size=tokens.vocab_size, mask_id=tokens.mask_id)
    denoiser = MaskedDenoiser(net, vocab_size=tokens.vocab_size, mask_id=tokens.mask_id)
    return Checkpoint(process=process, denoiser=denoiser, tokenizer=tokens, card={"data": "three sentences"})


def trainer(folder: Path, data: Any = None, *, dropout: float = 0.0, **changes: Any) -> Trainer:
    tokens = tokenizer()
    model = checkpoint(tokens, dropout)
    numbers: dict[str, Any] = {"steps": 12, "batch_size": 8, "warmup_steps": 2, "learning_rate": 1e-2, "log_every": 3}
    numbers |= {"checkpoint_every": 4, "checkpoint_seconds": None, "ema_decay": 0.9} | changes
    return Trainer(
        checkpoint=model,
        loss=MaskedNELBO(process=model.process),
        data=Ragged(tokens) if data is None else data,
        config=TrainingConfig(**numbers),
        folder=folder,
        progress=False,
    )


def fsdp_on_cpu() -> Any:
    """An FSDP2 Accelerator on CPUs.

    The launcher of Accelerate refuses `--cpu` together with `--use_fsdp`, and its state turns FSDP on for accelerators
    only, so the switch is set here; all the sharding that follows is the real one.
    """
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType

    policy = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["Block"]}
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False, **policy)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator


def main(kind: str, folder: str, numbers: str) -> None:
    torch.set_num_threads(1)
    changes = json.loads(numbers)
    run = trainer(Path(folder), **changes)
    if kind == "fsdp":
        run.accelerator = fsdp_on_cpu()
    run.run()
    sharded = [isinstance(p, DTensor) for p in run.checkpoint.denoiser.parameters()]
    assert all(sharded) if kind == "fsdp" else not any(sharded)
    state = PartialState()
    print(f"processes={state.num_processes}", flush=True)
    if kind == "fsdp":
        resume_from_the_one_before_last(run, changes, state)


def resume_from_the_one_before_last(run: Trainer, changes: dict[str, Any], state: Any) -> None:
    folder = Path(run.folder)
    if state.is_main_process:
        folder.rename(folder.with_name("first"))
        shutil.copytree(folder.with_name("first"), folder)
        shutil.rmtree(saved_states(folder / "training")[-1])
    state.wait_for_everyone()
    run.accelerator.free_memory()
    again = trainer(folder, **changes)
    again.accelerator = run.accelerator
    again.run(resume=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
