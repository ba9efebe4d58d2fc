"""Hard constraints: the canvas ends as a word of a formal language."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from unmask.blocks import map_sites
from unmask.denoiser import Denoiser
from unmask.errors import UserError
from unmask.languages.language import Chart, Language
from unmask.law import Law, LogProbMap, SiteLaw, State
from unmask.ops import draw_categorical, safe_log
from unmask.rng import Rng

_WORD, _TOKEN, _FREE = 1, 2, 3


class Constrained(Denoiser):
    """The model's law of the masked tokens, given that the whole becomes a word of a language.

    With p_i the model's law at site i, all sites independent, it is

        p(x) = 1[x agrees with the canvas and is a word] prod_i p_i(x_i) / Z,

    drawn **exactly** and jointly for the sites that a step reveals: what stands on the canvas can always be completed,
    and what is left at the end is a word. `log_probs` are the marginals of this law, for samplers that rank sites.

    It serves every sampler of masked noise that draws the values of a step in one go (ancestral, planned,
    first-hitting, remasking ones): those are valid for certain. A sampler that draws each site from its own marginal
    is not.

    Args:
        denoiser: the model.
        language: what may be spelled; see `unmask.languages`.
        mask_id: the mask, which is a gap that takes exactly one token.

    The sites that spell the word are given for each call as `constrained_sites`, boolean (b, l); None: all real tokens.

    References:
        Suresh et al., "DINGO: constrained inference for diffusion LLMs", 2025, arXiv:2505.23061 (the most probable
        string of a regular language by dynamic programming); Mündler, Dekoninck, Vechev, 2025, arXiv:2508.10111.
    """

    def __init__(self, denoiser: Denoiser, *, language: Language, mask_id: int) -> None:
        super().__init__()
        if not 0 <= mask_id < len(language.classes) or int(language.classes[mask_id]) >= 0:
            raise ValueError(f"Constrained: mask_id={mask_id} is no token, or the language spells words with it")
        self.denoiser, self.language, self.mask_id = denoiser, language, mask_id

    def forward(
        self,
        xt: State,
        t: Tensor,
        *,
        attention_mask: Tensor | None = None,
        constrained_sites: Tensor | None = None,
        **cond: Any,
    ) -> ConstrainedLaw:
        if isinstance(xt, dict):
            raise TypeError(f"Constrained: met columns {sorted(xt)}, wanted one tensor of tokens (b, l)")
        if attention_mask is not None:
            cond["attention_mask"] = attention_mask
        law: Law = self.denoiser(xt, t, **cond)
        if not isinstance(law, SiteLaw):
            raise TypeError(f"Constrained: met a {type(law).__name__}, wanted a discrete law of sites")
        sites = torch.ones_like(xt, dtype=torch.bool) if constrained_sites is None else constrained_sites
        if attention_mask is not None:
            sites = sites & attention_mask
        return ConstrainedLaw(law, self.language, xt, sites, self.mask_id)


class ConstrainedLaw(SiteLaw):
    """A product law given that the tokens of `sites` spell a word.

    Raises:
        UserError: when it is asked about a row that can become no word.
    """

    def __init__(
        self, law: SiteLaw, language: Language, xt: Int64[Tensor, "b l"], sites: Bool[Tensor, "b l"], mask_id: int
    ) -> None:
        self.law, self.language, self.xt, self.sites, self.mask_id = law, language, xt, sites, mask_id
        self.gaps = sites & (xt == mask_id)
        self._made: tuple[Tensor, Chart] | None = None

    @property
    def lengths(self) -> Tensor:
        return self.sites.sum(1).cpu()

    def _chart(self) -> tuple[Tensor, Chart]:
        """The log-probability of each class at each place of the word, (b, n, c), and the words that fit."""
        if self._made is None:
            weights = safe_log(_compact(self._class_probs().cpu(), self.sites.cpu()))
            chart = self.language.chart(weights, self.lengths)
            stuck = chart.log_total == -torch.inf
            if bool(stuck.any()):
                raise self._refusal(weights, int(stuck.nonzero()[0]))
            self._made = weights, chart
        return self._made

    def _class_probs(self) -> Tensor:
        """The probability of each class at the constrained sites, (b, l, c)."""
        classes, c = self.language.classes.to(self.xt.device), self.language.num_classes
        spelled = classes >= 0

        def masses(where: Tensor) -> Tensor:
            probs = self.law.log_probs(where).double().exp()
            return probs.new_zeros(len(probs), c).index_add(1, classes[spelled], probs[:, spelled])

        out = torch.zeros(*self.xt.shape, c, dtype=torch.float64, device=self.xt.device)
        given = self.sites & ~self.gaps
        out[given] = (torch.arange(c, device=out.device) == classes[self.xt[given]][:, None]).double()
        if bool(self.gaps.any()):
            out[self.gaps] = map_sites(masses, self.gaps, self.law_size)
        return out

    @property
    def law_size(self) -> int:
        return len(self.language.classes)

    def _refusal(self, weights: Tensor, row: int) -> UserError:
        """Why the row cannot become a word."""
        gaps = _compact(self.gaps.cpu()[..., None].double(), self.sites.cpu())[..., 0] > 0
        anything = self.language.chart(weights.masked_fill(gaps[..., None], 0.0), self.lengths)
        size = f"{int(self.lengths[row])} sites, {int(self.gaps[row].sum())} of them open"
        if float(anything.log_total[row]) > -torch.inf:
            return UserError(
                f"Constrained: the model gives probability zero to every word that fits row {row} ({size}); "
                "soften the model, or drop filters such as top_k"
            )
        return UserError(
            f"Constrained: no word of the language fits row {row}: {size}; change its length, what is given, or the "
            "language (a pad_id lets words end earlier)"
        )

    def sample_at(self, where: Bool[Tensor, "b l"], rng: Rng) -> tuple[Tensor, Tensor]:
        """Values drawn jointly, and the model's own log-probability of each."""
        tokens, scores = self.xt.clone(), torch.zeros(self.xt.shape, dtype=torch.float64, device=self.xt.device)
        bound, free = where & self.gaps, where & ~self.gaps
        if bool(free.any()):
            values, log_probs = self.law.sample_at(free, rng.fold(_FREE))
            tokens, scores = tokens.masked_scatter(free, values), scores.masked_scatter(free, log_probs.double())
        if bool(bound.any()):
            values = self._words(bound, rng)
            log_probs = self.law.token_log_prob(tokens.masked_scatter(bound, values), bound)
            tokens, scores = tokens.masked_scatter(bound, values), scores.masked_scatter(bound, log_probs.double())
        return tokens[where], scores[where]

    def _words(self, where: Tensor, rng: Rng) -> Tensor:
        """Values at the gaps of `where`: classes drawn jointly, then a token of each class."""
        sites = self.sites.cpu()

        def uniforms(k: int) -> Tensor:
            return _compact(rng.fold(_WORD, k + 1).uniform(self.xt.shape), sites)

        word = self._chart()[1].draw(uniforms)
        drawn = torch.full(self.xt.shape, -1)
        drawn[sites] = word[torch.arange(word.shape[1]) < self.lengths[:, None]]
        drawn, classes = drawn.to(self.xt.device), self.language.classes.to(self.xt.device)
        token_u = rng.fold(_TOKEN).uniform(self.xt.shape, self.xt.device)

        def tokens(part: Tensor) -> Tensor:
            log_probs = self.law.log_probs(part)
            return draw_categorical(log_probs.masked_fill(classes != drawn[part][:, None], -torch.inf), token_u[part])

        return map_sites(tokens, where, self.law_size)

    def log_probs(self, where: Bool[Tensor, "b l"] | None = None) -> Tensor:
        everywhere = torch.ones_like(self.sites) if where is None else where
        out = self.law.log_probs(everywhere).double()
        bound = (self.gaps & everywhere)[everywhere]
        if bool(bound.any()):
            weights, chart = self._chart()
            posterior = chart.posterior()
            tilt = torch.where(posterior > 0, posterior.log() - weights, -torch.inf)
            placed = torch.zeros(*self.xt.shape, self.language.num_classes, dtype=torch.float64)
            placed[self.sites.cpu()] = tilt[torch.arange(tilt.shape[1]) < self.lengths[:, None]]
            classes = self.language.classes.to(self.xt.device)
            by_token = placed.to(self.xt.device)[self.gaps & everywhere][:, classes.clamp(min=0)]
            tilted = out[bound] + by_token.masked_fill(classes < 0, -torch.inf)
            out = out.index_put((bound,), tilted)
        return out if where is not None else out.reshape(*self.xt.shape, -1)

    def map(self, fn: LogProbMap) -> ConstrainedLaw:
        """`fn` changes the model's law, not the language."""
        return ConstrainedLaw(self.law.map(fn), self.language, self.xt, self.sites, self.mask_id)


def _compact(x: Tensor, sites: Bool[Tensor, "b l"]) -> Tensor:
    """The sites of each row moved to its front, (b, n, ...) with n the longest; zeros behind."""
    lengths = sites.sum(1)
    out = x.new_zeros(len(x), int(lengths.max()), *x.shape[2:])
    out[torch.arange(out.shape[1]) < lengths[:, None]] = x[sites]
    return out
