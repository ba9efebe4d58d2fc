import torch

from unmask.denoisers.autoregressive import AutoregressiveDenoiser
from unmask.nn.transformer import Transformer, TransformerConfig
from unmask.oracles.tiny_joint import enumerate_states


def model() -> AutoregressiveDenoiser:
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=5, dim=16, num_layers=2, num_heads=2, max_length=8, causal=True)
    net = Transformer(config)
    for weight in net.parameters():  # the initial weights are too small to tell contexts apart
        torch.nn.init.normal_(weight, std=0.5)
    return AutoregressiveDenoiser(net, vocab_size=5, bos_id=3, forbidden=4).eval()


def test_it_is_a_law_over_whole_sequences() -> None:
    """The probabilities of all 4^3 sequences sum to 1: true only if site i reads x_<i and nothing else."""
    x = enumerate_states(4, 3)
    with torch.no_grad():
        total = model()(x, torch.zeros(len(x))).log_prob(x).exp().sum()
    assert abs(float(total) - 1) < 1e-5


def test_padding_and_packing_change_nothing() -> None:
    ar = model()
    x = torch.tensor([[0, 1, 2, 1]])
    with torch.no_grad():
        alone = ar(x, torch.zeros(1)).token_log_prob(x)[0]
        left = torch.tensor([[2, 2, 0, 1, 2, 1]])
        mask = torch.tensor([[False, False, True, True, True, True]])
        padded = ar(left, torch.zeros(1), attention_mask=mask).token_log_prob(left)[0, 2:]
        packed = torch.tensor([[2, 0, 0, 1, 2, 1]])
        ids = torch.tensor([[0, 0, 1, 1, 1, 1]])
        second = ar(packed, torch.zeros(1), document_ids=ids).token_log_prob(packed)[0, 2:]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, alone, atol=1e-5, rtol=1e-5)


def test_never_predicts_the_forbidden_token() -> None:
    x = torch.tensor([[0, 1, 2]])
    assert float(model()(x, torch.zeros(1)).log_probs()[..., 4].exp().max()) == 0
