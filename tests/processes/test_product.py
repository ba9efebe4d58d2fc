import pytest
import torch

from contracts import time
from unmask import Denoiser, ProductLaw, Rng, State, sample
from unmask.oracles.statistics import chi_square
from unmask.oracles.tiny_joint import TinyJoint, state_index
from unmask.processes.gidd import GIDD
from unmask.processes.masked import Masked
from unmask.processes.product import Product
from unmask.samplers.ancestral import Ancestral

LEFT, RIGHT = Masked(vocab_size=3, mask_id=2), Masked(vocab_size=4, mask_id=0)
PRODUCT = Product(columns={"left": LEFT, "right": RIGHT})


class Independent(Denoiser):
    """Two independent worlds, each denoised exactly; the right one's data values are 1, 2, 3."""

    def __init__(self) -> None:
        super().__init__()
        self.left = TinyJoint.random(2, 2, seed=1)
        self.right = torch.tensor([0.0, 0.5, 0.3, 0.2]).double()

    def forward(self, xt: State, t: torch.Tensor, **cond: object) -> ProductLaw:
        assert isinstance(xt, dict)
        from unmask import Categorical

        right = Categorical.from_logits(self.right.log().expand(*xt["right"].shape, 4))
        return ProductLaw(
            {
                "left": self.left.denoiser(LEFT)(xt["left"], t),
                "right": right.with_known(xt["right"], xt["right"] != 0),
            }
        )


def test_ancestral_sampling_needs_no_change() -> None:
    """The same sampler and loop on a product: each column ends with its own exact law."""
    model, n = Independent(), 100_000
    out = sample(Ancestral(process=PRODUCT), model, {"left": (n, 2), "right": (n, 1)}, num_steps=3, rng=Rng(0))
    assert isinstance(out, dict)
    exact = model.left.sampler_law(
        Ancestral(process=LEFT).transition, model.left.denoiser(LEFT), LEFT, torch.linspace(1, 0, 4).double()
    )
    counts = state_index(out["left"], 3).bincount(minlength=9)
    assert chi_square(counts, exact) > 1e-7
    assert chi_square(out["right"].flatten().bincount(minlength=4), model.right) > 1e-7
    both = out["left"][:, 0] * 4 + out["right"][:, 0]
    joint = both.bincount(minlength=8).double() / n
    left = joint.reshape(2, 4).sum(1, keepdim=True)
    torch.testing.assert_close(joint.reshape(2, 4), left * joint.reshape(2, 4).sum(0), atol=0.01, rtol=0)


def test_masks_that_come_back_are_told_by_column() -> None:
    noise = Product(columns={"left": LEFT, "right": GIDD(vocab_size=4, mask_id=0)})
    x = {"left": torch.tensor([[2, 1]]), "right": torch.tensor([[0, 3]])}
    told = noise.remasked(x)
    assert set(told) == {"right"}
    assert told["right"].tolist() == [[True, False]]


def test_columns_are_corrupted_by_their_own_process() -> None:
    n = 50_000
    x0 = {"left": torch.ones(n, 1, dtype=torch.int64), "right": torch.ones(n, 1, dtype=torch.int64)}
    xt = PRODUCT.corrupt(x0, time(0.25).expand(n), Rng(0))
    assert isinstance(xt, dict)
    left, right = xt["left"] == 2, xt["right"] == 0
    assert abs(float(left.double().mean()) - 0.25) < 0.011
    assert abs(float((left & right).double().mean()) - 0.0625) < 0.006, "columns share their randomness"


@pytest.mark.parametrize("columns", [{"left": (1, 1)}, {"left": (1, 1), "right": (1, 1), "more": (1, 1)}])
def test_names_the_columns_it_wants(columns: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"wanted columns \['left', 'right'\]"):
        PRODUCT.prior(columns, Rng(0))
