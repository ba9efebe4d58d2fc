"""The policy's scores: even before training, blind to padding and other documents; the law is the denoiser's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from contracts import PaddedChain
from helpers import padded
from unmask.denoisers.masked import MaskedDenoiser
from unmask.denoisers.unmasking_policy import UnmaskingPolicy
from unmask.nn.transformer import TransformerConfig

V, MASK = 6, 5
HALF = torch.full((8,), 0.5).double()


def policy(*, trained: bool) -> UnmaskingPolicy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TransformerConfig(vocab_size=V, dim=16, num_layers=1, num_heads=2, max_length=12)
        model = UnmaskingPolicy(MaskedDenoiser(config.build(), vocab_size=V, mask_id=MASK), dim=16, num_heads=2)
        if trained:
            for weight in (model.score.weight, model.is_mask):
                nn.init.normal_(weight, std=1.0)
    return model.eval()


def canvases() -> Tensor:
    x = torch.randint(0, V, (8, 6), generator=torch.Generator().manual_seed(1))
    x[:, 1] = MASK
    return x


def test_the_law_is_the_denoisers_and_scores_begin_even() -> None:
    model, x = policy(trained=False), canvases()
    law = model(x, HALF)
    assert torch.equal(law.log_probs(), model.inner(x, HALF).log_probs())
    assert torch.equal(law.scores, torch.zeros(8, 6))
    after = policy(trained=True)(x, HALF)
    assert torch.equal(after.log_probs(), model.inner(x, HALF).log_probs())
    assert float(after.scores.detach().std()) > 0.1
    assert torch.equal(after.map(lambda rows: 0.5 * rows).scores, after.scores)


def test_padding_and_other_documents_change_nothing() -> None:
    model, x = policy(trained=True), canvases()
    alone = model(x, HALF).scores
    wide, mask = padded(x, 2, 3)
    torch.testing.assert_close(model(wide, HALF, attention_mask=mask).scores[mask], alone.flatten())
    both, documents = torch.cat([x, x.flip(0)], 1), torch.arange(12).ge(6).long().expand(8, 12)
    places = torch.arange(6).repeat(2).expand(8, 12)
    packed = model(both, HALF, document_ids=documents, positions=places).scores
    torch.testing.assert_close(packed[:, :6], alone)


def test_scores_teach_the_network_and_know_the_masks() -> None:
    model, x = policy(trained=True), canvases()
    law = model(x, HALF)
    law.scores.square().sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    assert silent == set(), "embedding and head are one, so that every weight is reached"
    plain = policy(trained=True)
    nn.init.zeros_(plain.is_mask)
    assert float((plain(x, HALF).scores - law.scores).detach().abs().max()) > 0.01
    again = UnmaskingPolicy(model.inner, **model.config())
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, HALF).scores, law.scores)


def test_refuses() -> None:
    with pytest.raises(TypeError, match="MaskedDenoiser"):
        UnmaskingPolicy(PaddedChain(4), dim=8, num_heads=2)  # type: ignore[arg-type]
