import pytest
import torch

from helpers import CountingHead
from unmask.denoisers.masked import MaskedDenoiser


def test_carries_over_what_is_not_masked_and_never_predicts_the_mask() -> None:
    net = CountingHead(vocab_size=6)
    denoiser = MaskedDenoiser(net, vocab_size=6, mask_id=5)
    xt = torch.tensor([[1, 5, 3, 5]])
    probs = denoiser(xt, torch.tensor([0.5])).log_probs().exp()
    assert probs[0, 0].tolist() == [0, 1, 0, 0, 0, 0]
    assert probs[0, 2].tolist() == [0, 0, 0, 1, 0, 0]
    assert net.rows_seen == 2, "the head was asked about tokens that are known"
    free = net.head(net.table[5][None])[:, :5].softmax(-1)
    torch.testing.assert_close(probs[0, 1, :5], free[0])
    assert float(probs[..., 5].max()) == 0


def test_config_rebuilds_it() -> None:
    net = CountingHead(vocab_size=6)
    again = MaskedDenoiser(net, **MaskedDenoiser(net, vocab_size=6, mask_id=5).config())
    assert (again.vocab_size, again.mask_id) == (6, 5)


def test_refuses_a_mask_outside_the_states() -> None:
    with pytest.raises(ValueError, match="mask_id=6"):
        MaskedDenoiser(CountingHead(vocab_size=6), vocab_size=6, mask_id=6)


def test_refuses_columns() -> None:
    with pytest.raises(TypeError, match="columns"):
        MaskedDenoiser(CountingHead(vocab_size=6), vocab_size=6, mask_id=5)({"a": torch.zeros(1, 1)}, torch.zeros(1))
