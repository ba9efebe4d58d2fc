import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import unmask.nn.head as head_module
from unmask.nn.head import Head


@pytest.fixture(params=["plain", "chunked"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways through token_log_prob; the chunks cut rows and vocabulary unevenly."""
    if request.param == "chunked":
        monkeypatch.setattr(head_module, "_MAX_ENTRIES", 35)
        monkeypatch.setattr(head_module, "_MAX_ROWS", 5)
    return str(request.param)


def make(n: int = 13, v: int = 17, dtype: torch.dtype = torch.float32) -> tuple[Head, Tensor, Tensor]:
    torch.manual_seed(0)
    head = Head(6, v).to(dtype)
    torch.nn.init.normal_(head.weight)
    return head, torch.randn(n, 6, dtype=dtype, requires_grad=True), torch.randint(v - 3, (n,))


def reference(head: Head, hidden: Tensor, targets: Tensor, forbidden: int | None) -> Tensor:
    logits = F.linear(hidden, head.weight).double()
    if forbidden is not None:
        keep = torch.arange(logits.shape[1]) != forbidden
        logits = logits.where(keep, -torch.inf)
    return torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("forbidden", [None, 14, 16])
def test_values_and_gradients_are_those_of_the_log_softmax(path: str, forbidden: int | None) -> None:
    head, hidden, targets = make()
    upstream = torch.randn(13)
    scores = head.token_log_prob(hidden, targets, forbidden=forbidden)
    wanted = reference(head, hidden, targets, forbidden)
    torch.testing.assert_close(scores, wanted.float())
    met = torch.autograd.grad((scores * upstream).sum(), (hidden, head.weight))
    exact = torch.autograd.grad((wanted * upstream).sum(), (hidden, head.weight))
    torch.testing.assert_close(met, exact, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("forbidden", [None, 14, 16])
def test_gradcheck_in_float64(path: str, forbidden: int | None) -> None:
    head, hidden, targets = make(n=7, dtype=torch.float64)

    def score(hidden: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(head, {"weight": weight}, (hidden, targets), {"forbidden": forbidden})

    assert torch.autograd.gradcheck(score, (hidden, head.weight))


def test_bf16_autocast_stays_float32_outside_the_products(path: str) -> None:
    head, hidden, targets = make()
    with torch.autocast("cpu", torch.bfloat16):
        scores = head.token_log_prob(hidden, targets)
    assert scores.dtype == torch.float32
    assert bool((scores <= 0).all())  # the target's logit and the log-sum-exp round alike
    grads = torch.autograd.grad(scores.sum(), (hidden, head.weight))
    assert {g.dtype for g in grads} == {torch.float32}
    wanted = reference(head, hidden, targets, None)
    exact = torch.autograd.grad(wanted.sum(), (hidden, head.weight))
    torch.testing.assert_close(scores, wanted.float(), atol=0.1, rtol=0)
    for met, true in zip(grads, exact, strict=True):
        assert float((met - true).norm() / true.norm()) < 0.02


def test_chunked_weight_gradient_does_not_lose_small_terms_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed in bfloat16 over many row blocks, equal small contributions would stall at 1/256 of the total."""
    monkeypatch.setattr(head_module, "_MAX_ENTRIES", 4)
    monkeypatch.setattr(head_module, "_MAX_ROWS", 1)
    head = Head(1, 4)
    torch.nn.init.zeros_(head.weight)
    hidden, targets = torch.ones(800, 1), torch.zeros(800, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        scores = head.token_log_prob(hidden, targets)
    scores.sum().backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad, torch.tensor([[600.0], [-200.0], [-200.0], [-200.0]]))


def test_forbidden_state_keeps_its_logit_out_of_everything(path: str) -> None:
    head, hidden, targets = make()
    before = head.token_log_prob(hidden, targets, forbidden=16)
    (grad,) = torch.autograd.grad(before.sum(), head.weight)
    assert float(grad[16].abs().max()) == 0.0
    with torch.no_grad():
        head.weight[16] = 100.0
    torch.testing.assert_close(head.token_log_prob(hidden, targets, forbidden=16), before)


def test_extreme_logits_stay_finite(path: str) -> None:
    head, hidden, targets = make()
    with torch.no_grad():
        scores = head.token_log_prob(hidden * 1e6, targets)
    assert bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("wrong", [-1, 17])
def test_a_target_outside_the_vocabulary_is_refused(path: str, wrong: int) -> None:
    head, hidden, targets = make()
    targets[3] = wrong
    with pytest.raises(IndexError):
        head.token_log_prob(hidden, targets)


def test_no_rows_give_no_scores_and_a_zero_gradient(path: str) -> None:
    head, hidden, targets = make(n=0)
    scores = head.token_log_prob(hidden, targets)
    assert scores.shape == (0,)
    scores.sum().backward()


def test_nothing_of_size_n_by_v_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_MAX_ENTRIES", 100)
    head, hidden, targets = make(n=40, v=50)
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        head.token_log_prob(hidden, targets)
    assert kept
    assert max(kept) == head.weight.numel() < 40 * 50


def test_peak_memory_is_far_below_the_logits() -> None:
    """Forward and backward with 0.4 GB of logits: the process grows by less than a quarter of that."""
    code = (
        "import torch, resource; from unmask.nn.head import Head; torch.set_num_threads(1); torch.manual_seed(0)\n"
        "head, hidden = Head(8, 50_000), torch.randn(2048, 8, requires_grad=True)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "head.token_log_prob(hidden[:100], torch.arange(100)).sum().backward(); before = peak()\n"
        "head.token_log_prob(hidden, torch.arange(2048)).sum().backward()\n"
        "print((peak() - before) * 1024)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert grown < 0.25 * 2048 * 50_000 * 4
