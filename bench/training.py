"""Training: whole steps against the usual loss, peak memory, and against the time of the step's own matrix products."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.measure import Row, interleaved
from unmask import Rng
from unmask.denoisers.masked import MaskedDenoiser
from unmask.losses.masked_nelbo import MaskedNELBO
from unmask.nn.transformer import Transformer, TransformerConfig
from unmask.processes.masked import Masked

Step = Callable[[], None]


def network(vocab_size: int, **overrides: int) -> Transformer:
    """12 layers of 256, the same for both losses."""
    torch.manual_seed(0)
    return Transformer(TransformerConfig.small(vocab_size=vocab_size, max_length=256, **overrides))


def usual_loss(net: Transformer, tokens: Tensor, mask_id: int) -> Tensor:
    """The common way: one uniform time per row, float32 logits and cross-entropy at all positions, weight 1/t."""
    t = torch.rand(len(tokens), 1).clamp(min=1e-3)
    masked = torch.rand(tokens.shape) < t
    logits = net.head(net(torch.where(masked, mask_id, tokens)).flatten(0, 1))
    losses = F.cross_entropy(logits, tokens.flatten(), reduction="none").view(tokens.shape)
    return (losses * masked / t).sum() / tokens.numel()


def training_step(name: str, net: Transformer, batch: int, length: int = 256) -> Step:
    """One whole step, "unmask" or "usual": corruption, network, loss, backward, AdamW."""
    vocab_size = net.config.vocab_size
    mask_id = vocab_size - 1
    tokens = torch.randint(mask_id, (batch, length))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    nelbo = MaskedNELBO(process=Masked(vocab_size=vocab_size, mask_id=mask_id))
    denoiser = MaskedDenoiser(net, vocab_size=vocab_size, mask_id=mask_id)

    def step() -> None:
        if name == "unmask":
            loss = nelbo(denoiser, tokens, Rng(0)).sum() / tokens.numel()
        else:
            loss = usual_loss(net, tokens, mask_id)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def compare_speed(net: Transformer, *, batch: int, repetitions: int, wanted: float) -> list[Row]:
    """Tokens per second of our loss over the usual one."""
    steps = {name: training_step(name, net, batch, net.config.max_length) for name in ("unmask", "usual")}
    torch.manual_seed(0)
    best = interleaved(steps, repetitions)
    tokens = batch * net.config.max_length
    return [
        Row(
            target_number="3",
            what=f"training tokens/s, {tokens} tokens a step, vocabulary {net.config.vocab_size}: unmask over usual",
            value=best["usual"] / best["unmask"],
            bound=wanted,
            at_least=True,
            details=", ".join(f"{name} {tokens / s:.4g} tokens/s" for name, s in best.items()),
        )
    ]


def peak_memory(name: str, vocab_size: int, batch: int) -> dict[str, int]:
    """Peak resident bytes of two training steps in a process of their own, and what imports alone had taken."""
    command = [sys.executable, "-m", "bench.training", name, str(vocab_size), str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, int] = json.loads(done.stdout)
    return measured


def compare_memory(*, vocab_size: int, batch: int, wanted: float) -> list[Row]:
    """Peak memory of our loss over the usual one: above what the imports take, and in all."""
    ours, usual = (peak_memory(name, vocab_size, batch) for name in ("unmask", "usual"))
    above = [m["peak"] - m["imports"] for m in (ours, usual)]
    what = f"peak memory of training, {batch * 256} tokens a step, vocabulary {vocab_size}: unmask over usual loss"
    return [
        Row(
            target_number="3",
            what=f"{what}{note}",
            value=a / b,
            bound=wanted,
            at_least=False,
            details=f"unmask {a / 2**20:.0f} MiB, usual {b / 2**20:.0f} MiB",
        )
        for note, a, b in ((", without imports", *above), (", whole process", ours["peak"], usual["peak"]))
    ]


class _Products(TorchDispatchMode):
    """Notes the shapes of every matrix product that runs under it; attention counts as its own batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            a, b = args[-2:]
            self.shapes[(1, a.shape[0], a.shape[1], b.shape[1])] += 1
        elif "scaled_dot_product" in name:
            backward = name.endswith("backward")
            q = args[1 if backward else 0]
            heads, length, width = q.shape[0] * q.shape[1], q.shape[2], q.shape[3]
            self.shapes[(heads, length, width, length)] += 3 if backward else 1  # q k^T, and again; grad v^T
            self.shapes[(heads, length, length, width)] += 3 - (not backward) * 2  # p v; grads of q, k, v
        return func(*args, **(kwargs or {}))


def own_products(step: Step) -> Step:
    """Work that does the matrix products of `step` and nothing else."""
    with _Products() as seen:
        step()
    sides = {
        (b, m, k, n): (torch.randn(b, m, k), torch.randn(b, k, n), torch.empty(b, m, n)) for b, m, k, n in seen.shapes
    }

    def products() -> None:
        for shape, times in seen.shapes.items():
            a, b, out = sides[shape]
            for _ in range(times):
                torch.bmm(a, b, out=out)

    return products


def compare_products(net: Transformer, *, batch: int, repetitions: int) -> list[Row]:
    """The whole step over the time of its own matrix products."""
    step = training_step("unmask", net, batch, net.config.max_length)
    best = interleaved({"step": step, "products": own_products(step)}, repetitions)
    return [
        Row(
            target_number="4",
            what=f"whole training step, {batch * net.config.max_length} tokens, vocabulary {net.config.vocab_size}: "
            "over the time of its own matrix products",
            value=best["step"] / best["products"],
            bound=1.6,
            at_least=False,
            details=f"step {best['step']:.3g} s, products {best['products']:.3g} s",
        )
    ]


def rows() -> list[Row]:
    small = network(28)
    table = compare_speed(small, batch=8, repetitions=4, wanted=1.0)
    table += compare_products(small, batch=8, repetitions=4)
    table += compare_speed(network(50258), batch=8, repetitions=2, wanted=1.6)
    return table + compare_memory(vocab_size=50258, batch=8, wanted=0.5)


def _peak() -> int:
    """Peak resident bytes of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # here `ru_maxrss` would start from what the parent process held when it forked
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _main(name: str, vocab_size: str, batch: str) -> None:
    torch.set_num_threads(1)
    imports = _peak()
    step = training_step(name, network(int(vocab_size)), int(batch))
    step()
    step()
    print(json.dumps({"imports": imports, "peak": _peak()}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
