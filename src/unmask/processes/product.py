"""Products of processes over named columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from unmask.columns import by_column, masks_by_column
from unmask.law import Law, ProductLaw, State
from unmask.process import Process
from unmask.rng import Rng

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Product(Process):
    """Independent noise on named columns, each with its own process: tables, graphs, text with images.

    q(x_t | x_0) = prod_c q_c(x_t^c | x_0^c). The three verbs are applied column by column; `Product` is itself a
    `Process`, so loops and samplers take it as they take any other.

    Args:
        columns: name -> process.

    Raises:
        ValueError: if a state lacks a column or has one more.

    References:
        Campbell et al., "Generative flows on discrete state-spaces: enabling multimodal flows with applications to
        protein co-design", 2024, arXiv:2402.04997 (factorised noise over modalities).
    """

    columns: Mapping[str, Process]

    def prior(self, shape: Mapping[str, Sequence[int]], rng: Rng) -> State:
        self._check(shape, "prior")
        return {name: _one(p.prior(shape[name], rng.column(name))) for name, p in self.columns.items()}

    def corrupt(self, x0: State, t: Tensor, rng: Rng, x1: State | None = None) -> State:
        columns = self._check(x0, "corrupt")
        ends = {} if x1 is None else self._check(x1, "corrupt")
        return {
            name: _one(p.corrupt(columns[name], t, rng.column(name), ends.get(name)))
            for name, p in self.columns.items()
        }

    def corrupt_canvas(
        self,
        x0: State,
        t: Tensor,
        rng: Rng,
        *,
        editable: State | None = None,
        attention_mask: Tensor | None = None,
    ) -> State:
        columns = self._check(x0, "corrupt")
        free = by_column(columns, editable)
        masks = {} if attention_mask is None else masks_by_column(columns, attention_mask)
        return {
            name: _one(
                p.corrupt_canvas(
                    columns[name], t, rng.column(name), editable=free.get(name), attention_mask=masks.get(name)
                )
            )
            for name, p in self.columns.items()
        }

    def reverse(self, law: Law, xt: State, t: Tensor, s: Tensor) -> Law:
        columns = self._check(xt, "reverse")
        return ProductLaw({name: p.reverse(law.column(name), columns[name], t, s) for name, p in self.columns.items()})

    def remasked(self, x: State) -> dict[str, Tensor]:
        columns = self._check(x, "remasked")
        found = {name: p.remasked(columns[name]) for name, p in self.columns.items()}
        return {name: _one(sites) for name, sites in found.items() if sites is not None}

    def _check(self, state: Mapping[str, _T] | Tensor, operation: str) -> Mapping[str, _T]:
        if isinstance(state, Tensor) or set(state) != set(self.columns):
            met = "a single tensor" if isinstance(state, Tensor) else f"columns {sorted(state)}"
            raise ValueError(f"Product.{operation}: met {met}, wanted columns {sorted(self.columns)}")
        return state


def _one(state: State) -> Tensor:
    if isinstance(state, dict):
        raise TypeError("Product: a column returned a dict; nest columns by name, not products")
    return state
