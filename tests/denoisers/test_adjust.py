"""A layer over frozen hidden states: idle before training, blind to padding and other documents, alone in learning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from contracts import PaddedChain
from helpers import padded
from unmask.denoisers.adjust import Adjusted, round_law
from unmask.denoisers.masked import MaskedDenoiser
from unmask.nn.transformer import TransformerConfig

V, MASK, DIM = 6, 5, 16


def adjusted(*, trained: bool) -> Adjusted:
    """With `trained`, a layer that moves the law a lot."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TransformerConfig(vocab_size=V, dim=DIM, num_layers=1, num_heads=2, max_length=12)
        net = MaskedDenoiser(config.build(), vocab_size=V, mask_id=MASK)
        nn.init.normal_(net.net.head.weight, std=1.0)
        model = Adjusted(net, dim=DIM, num_heads=2)
        if trained:
            for weight in (model.leave.weight, model.enter.weight):
                nn.init.normal_(weight, std=0.5)
    return model.eval()


def canvases(n: int, length: int) -> tuple[Tensor, Tensor]:
    """x_t with its masks, and the same with one mask drawn at the site 1."""
    x = torch.randint(0, V, (n, length), generator=torch.Generator().manual_seed(1))
    x[:, 1:3] = MASK
    y = x.clone()
    y[:, 1] = torch.arange(n) % MASK
    return x, y


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tables of log-probabilities, in probability."""
    return float((a.exp() - b.exp()).detach().abs().max())


def test_before_training_a_drawn_token_tells_nothing() -> None:
    model, (x, y), t = adjusted(trained=False), canvases(8, 6), torch.full((8,), 0.5).double()
    law, plain = round_law(model(x, t), "test"), model.inner(x, t)
    assert torch.equal(law.log_probs(), plain.log_probs()), "bit for bit the frozen denoiser"
    rest = y == MASK
    torch.testing.assert_close(law.given(y).log_probs(rest), plain.log_probs(rest))
    drawn = law.given(y).token_log_prob(y, ~rest)
    assert torch.equal(drawn, torch.zeros_like(drawn)), "what was drawn is certain"


def test_a_trained_layer_reads_the_drawn_tokens_and_their_sites() -> None:
    model, (x, y), t = adjusted(trained=True), canvases(8, 6), torch.full((8,), 0.5).double()
    law, rest = round_law(model(x, t), "test"), y == MASK
    assert torch.equal(law.log_probs(), model.inner(x, t).log_probs())
    here = law.given(y).log_probs(rest)
    other = y.clone()
    other[:, 1] = (y[:, 1] + 1) % MASK
    assert far(here, law.given(other).log_probs(rest)) > 0.1
    moved = x.clone()
    moved[:, 2] = y[:, 1]  # the same token at another site
    untouched = (x == MASK) & (torch.arange(6) > 2)
    assert far(law.given(y).log_probs(untouched), law.given(moved).log_probs(untouched)) > 0.002
    flat = law.map(lambda rows: 0.5 * rows)
    wanted = torch.log_softmax(0.5 * here, -1)
    torch.testing.assert_close(round_law(flat, "test").given(y).log_probs(rest), wanted)


def test_padding_and_other_documents_change_nothing() -> None:
    model, (x, y), t = adjusted(trained=True), canvases(8, 6), torch.full((8,), 0.5).double()
    alone = round_law(model(x, t), "test").given(y).log_probs(y == MASK)
    wide, mask = padded(x, 2, 3)
    wide_y, _ = padded(y, 2, 3)
    law = round_law(model(wide, t, attention_mask=mask), "test").given(wide_y)
    torch.testing.assert_close(law.log_probs((wide_y == MASK) & mask), alone, atol=1e-5, rtol=1e-5)
    both, documents = torch.cat([x, x.flip(0)], 1), torch.arange(12).ge(6).long().expand(8, 12)
    places = torch.arange(6).repeat(2).expand(8, 12)
    after = torch.cat([y, y.flip(0)], 1)
    law = round_law(model(both, t, document_ids=documents, positions=places), "test").given(after)
    first = (after == MASK) & (documents == 0)
    torch.testing.assert_close(law.log_probs(first), alone, atol=1e-5, rtol=1e-5)


def test_only_the_layer_learns_and_the_head_sees_only_what_is_asked() -> None:
    model, (x, y), t = adjusted(trained=True), canvases(8, 6), torch.full((8,), 0.5).double()
    rows = []
    model.inner.net.head.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))  # type: ignore[union-attr]
    where = torch.zeros_like(x, dtype=torch.bool)
    where[:3, 2] = True
    round_law(model(x, t), "test").given(y).token_log_prob(torch.zeros_like(x), where).sum().backward()
    assert rows == [3]
    learnt = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {"enter", "leave", "block", "norm"}
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters() if p.grad is not None)


def test_half_precision_and_its_configuration() -> None:
    model, (x, y), t = adjusted(trained=True), canvases(8, 6), torch.full((8,), 0.5).double()
    again = Adjusted(model.inner, **model.config())
    again.load_state_dict(model.state_dict())
    full = round_law(again(x, t), "test").given(y).log_probs()
    assert torch.equal(full, round_law(model(x, t), "test").given(y).log_probs())
    half = round_law(again.bfloat16()(x, t), "test").given(y).log_probs()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.exp(), full.exp(), atol=0.05, rtol=0.0)


def test_refuses() -> None:
    with pytest.raises(TypeError, match="MaskedDenoiser"):
        Adjusted(PaddedChain(4), dim=8, num_heads=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="RoundLaw"):
        round_law(PaddedChain(4)(torch.zeros(1, 2).long(), torch.zeros(1)), "test")
