"""Monte-Carlo tree search over denoising paths, for several rewards at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unmask.columns import keep_fixed
from unmask.denoiser import Denoiser
from unmask.law import Law, State
from unmask.loops import start, time_grid
from unmask.rng import Rng
from unmask.sampler import Carry, Sampler

_CHILDREN, _ROLLOUT, _CHOICE, _START = 1, 2, 3, 4

Rewards = Callable[[Tensor], Tensor]
"""x_0 (n, *s) -> rewards (n, d), each row for itself and larger for better; all equally low for what is not valid."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ParetoSet:
    """Samples of which none is at least as good as another in every reward and better in one.

    Args:
        x: (n, *s).
        rewards: (n, d).
        rows_evaluated: canvases that the denoiser was asked about on the way.
    """

    x: Int64[Tensor, "n *s"]
    rewards: Float[Tensor, "n d"]
    rows_evaluated: int

    def with_more(self, x: Tensor, rewards: Tensor, rows_evaluated: int) -> ParetoSet:
        """The set of these and others."""
        all_x, all_rewards = torch.cat([self.x, x]), torch.cat([self.rewards, rewards])
        best = pareto_front(all_rewards)
        return ParetoSet(x=all_x[best], rewards=all_rewards[best], rows_evaluated=rows_evaluated)


def pareto_front(rewards: Float[Tensor, "n d"]) -> Bool[Tensor, " n"]:
    """Which rows no other row dominates; of equal ones the first."""
    as_good = (rewards[:, None] >= rewards[None]).all(2)  # i is as good as j
    better = as_good & ~as_good.T
    earlier = (as_good & as_good.T).tril(-1).T  # i equals j and comes before it
    return ~(better | earlier).any(0)


def hypervolume(rewards: Float[Tensor, "n 2"], *, reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """The area between a reference and the staircase of the best of two rewards.

    Raises:
        ValueError: for another number of rewards than two.
    """
    if rewards.ndim != 2 or rewards.shape[1] != 2:
        raise ValueError(f"hypervolume: rewards of shape {tuple(rewards.shape)}, wanted (n, 2)")
    above = (rewards.double() - torch.tensor(reference, dtype=torch.float64)).clamp(min=0)
    area, height = 0.0, 0.0
    for width, level in sorted(above[pareto_front(above)].tolist(), reverse=True):
        area += width * max(level - height, 0.0)
        height = max(height, level)
    return area


@dataclass(kw_only=True, eq=False)
class _Node:
    """A canvas on the way: its depth in steps, its children, its visits, what these were worth in sum."""

    x: Tensor
    depth: int
    parent: _Node | None = None
    children: list[_Node] = field(default_factory=list)
    visits: int = 0
    worth: Tensor = field(default_factory=lambda: torch.zeros(()))
    explored: bool = False  # finished, or all that is below it


@dataclass(frozen=True, kw_only=True)
class TreeSearch:
    """Looks for the best trade-offs of d rewards among a model's samples, one denoising step a level of the tree.

    A round walks from the root to a leaf, by **selection** among the children whose vectors

        mean worth + exploration * sqrt(visits of the parent) / (1 + own visits)

    are not dominated by another's, except those below which all is explored; makes `num_children` continuations of the
    leaf by one step of the sampler each, in one batch (**expansion**: draws by inverse CDF, the law that perturbing
    logits by Gumbel noise has); denoises them to the end (**rollout**); keeps what is not dominated in a Pareto set;
    and adds to every ancestor what the children were worth (**backup**): in each reward the share of the set that a
    child is at least as good as.

    A step is to reveal several tokens: then a rollout tells children apart, and deep ones are cheap. With a level for
    every token, a tree is hardly better than as many samples.

    **Heuristic**: what it keeps is the model's, but not as often as the model draws it.

    Args:
        sampler: any of one tensor of tokens, whose carry needs no handing on between canvases (`Ancestral`, `Unmask`).
        num_rounds: >= 1; fewer if the whole tree is explored before.
        num_children: of a leaf, >= 1.
        exploration: >= 0.

    Raises:
        ValueError: for numbers outside these ranges; for rewards of another shape, NaN or infinite.

    References:
        Tang, Zhang, Chatterjee, "PepTune: de novo generation of therapeutic peptides with multi-objective-guided
        discrete diffusion", 2024, arXiv:2412.17780 (its penalty for invalid strings is a reward that falls for them).
    """

    sampler: Sampler
    num_rounds: int
    num_children: int = 8
    exploration: float = 0.1

    def __post_init__(self) -> None:
        if self.num_rounds < 1 or self.num_children < 1:
            raise ValueError(
                f"TreeSearch: num_rounds={self.num_rounds}, num_children={self.num_children}, wanted at least 1 of each"
            )
        if not (math.isfinite(self.exploration) and self.exploration >= 0):
            raise ValueError(f"TreeSearch: exploration={self.exploration}, wanted a finite number >= 0")

    @torch.no_grad()
    def search(
        self,
        denoiser: Denoiser,
        rewards: Rewards,
        canvas: Any,
        /,
        *,
        num_steps: int,
        rng: Rng,
        editable: Tensor | None = None,
        **cond: Any,
    ) -> ParetoSet:
        """The Pareto set of one tree.

        Args:
            denoiser: the model.
            rewards: asked about `num_children` finished samples a round.
            canvas: a shape (1, *s), or one canvas whose non-editable sites are kept.
            num_steps: equal steps from noise to data, the depth of the tree.
            rng: of everything.
            editable: boolean, like the canvas; None: all sites.
            cond: conditions of the denoiser, for one row.
        """
        walk = _Walk(self, denoiser, time_grid(num_steps), rng, editable, cond)
        begun = start(self.sampler, canvas, rng.fold(_START), editable)
        if not isinstance(begun, Tensor) or len(begun) != 1:
            raise ValueError(f"TreeSearch: the canvas is {type(begun).__name__}, wanted one row of tokens, (1, *s)")
        root = _Node(x=begun, depth=0)
        found: ParetoSet | None = None
        for index in range(self.num_rounds):
            if root.explored:
                break
            leaf = self._select(root, rng.fold(_CHOICE, index))
            leaf.children = walk.expand(leaf, self.num_children, index)
            finished = walk.finish(leaf.children, index)
            values = _checked(rewards(finished), len(finished))
            found = (
                ParetoSet(x=finished[:0], rewards=values[:0], rows_evaluated=0) if found is None else found
            ).with_more(finished, values, walk.denoiser.rows)
            for child, value in zip(leaf.children, values, strict=True):
                _back_up(child, (value >= found.rewards).double().mean(0))
            if leaf.depth == num_steps - 1:
                _close(leaf)
        assert found is not None
        return found

    def _select(self, node: _Node, rng: Rng) -> _Node:
        """A leaf that can be expanded, by the rule of selection at every level; ties at random."""
        while node.children:
            open_ones = [child for child in node.children if not child.explored]
            bonus = torch.tensor([math.sqrt(node.visits) / (1 + child.visits) for child in open_ones])
            mean = torch.stack([child.worth / child.visits for child in open_ones])
            front = pareto_front(mean + self.exploration * bonus[:, None]).nonzero().squeeze(1)
            node = open_ones[int(front[int(rng.fold(node.depth).scalar() * len(front))])]
        return node


class _Walk:
    """Steps of many canvases at once."""

    def __init__(
        self,
        search: TreeSearch,
        denoiser: Denoiser,
        times: Tensor,
        rng: Rng,
        editable: Tensor | None,
        cond: dict[str, Any],
    ) -> None:
        self.sampler, self.times, self.rng = search.sampler, times.tolist(), rng
        self.editable, self.cond, self.denoiser = editable, cond, _Rows(denoiser)

    def _step(self, x: Tensor, carry: Carry, depth: int, rng: Rng) -> tuple[Tensor, Carry]:
        t, s = (torch.full((len(x),), v, dtype=torch.float64, device=x.device) for v in self.times[depth : depth + 2])
        free = None if self.editable is None else self.editable.expand(len(x), *self.editable.shape[1:])
        cond = {k: v.expand(len(x), *v.shape[1:]) if _of_one_row(v) else v for k, v in self.cond.items()}
        after, carry = self.sampler.step(self.denoiser, x, t, s, carry, rng, editable=free, **cond)
        kept: State = keep_fixed(x, after, free)
        assert isinstance(kept, Tensor)
        return kept, carry

    def expand(self, leaf: _Node, count: int, index: int) -> list[_Node]:
        x = leaf.x.expand(count, *leaf.x.shape[1:]).clone()
        after, _ = self._step(x, self.sampler.init(x), leaf.depth, self.rng.fold(_CHILDREN, index))
        depth = leaf.depth + 1
        return [
            _Node(x=after[i : i + 1], depth=depth, parent=leaf, explored=depth == len(self.times) - 1)
            for i in range(count)
        ]

    def finish(self, nodes: list[_Node], index: int) -> Tensor:
        x = torch.cat([node.x for node in nodes])
        carry = self.sampler.init(x)
        for depth in range(nodes[0].depth, len(self.times) - 1):
            x, carry = self._step(x, carry, depth, self.rng.fold(_ROLLOUT, index, depth))
        return x


class _Rows(Denoiser):
    """Counts the rows that are evaluated."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.rows = inner, 0

    def forward(self, xt: State, t: Tensor, *, attention_mask: Tensor | None = None, **cond: Any) -> Law:
        self.rows += len(t)
        padding = {} if attention_mask is None else {"attention_mask": attention_mask}
        law: Law = self.inner(xt, t, **padding, **cond)
        return law


def _back_up(node: _Node | None, worth: Tensor) -> None:
    while node is not None:
        node.worth, node.visits = node.worth + worth, node.visits + 1
        node = node.parent


def _close(node: _Node | None) -> None:
    """Nothing is left to expand below this node, and below those that have no other."""
    while node is not None and all(child.explored for child in node.children):
        node.explored, node = True, node.parent


def _of_one_row(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == 1


def _checked(rewards: Tensor, count: int) -> Float[Tensor, "n d"]:
    if rewards.ndim != 2 or len(rewards) != count or not bool(rewards.isfinite().all()):
        raise ValueError(
            f"TreeSearch: the rewards of {count} samples came as {tuple(rewards.shape)}"
            f"{'' if bool(rewards.isfinite().all()) else ', not all finite'}; wanted finite ones, ({count}, d)"
        )
    return rewards
