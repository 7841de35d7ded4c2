"""Estimates of a question: alignments of all its nodes, and sums over nodes with the covariance that pooling creates.

Legend of shape suffixes: N nodes, K entries of a node, D directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.chain import eliminate, noise
from opdscope_scorer.estimator import coefficients, neutral, norm_sq_slope, squared_error
from opdscope_scorer.fit import fit
from opdscope_scorer.links import uncut
from opdscope_scorer.pooling import pool, pool_sums
from opdscope_scorer.rates import pooled_rates
from opdscope_scorer.scoring import score_fit
from opdscope_scorer.tails import tail_inner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opdscope_scorer.allocation import QuestionState
    from opdscope_scorer.fit import Fit
    from opdscope_scorer.nodes import Bools, Direction, Floats
    from opdscope_scorer.pooling import PoolSums
    from opdscope_scorer.prior import Prior
    from opdscope_scorer.rates import Rates
    from opdscope_scorer.scoring import Alignments, Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a question's outcomes say."""

    fit: Fit
    rates: Rates
    directions: Sequence[Direction]
    alignments: Sequence[Alignments]
    """At all different nodes, in the order of the directions."""

    def sums(self, chosen: Bools | slice | None = None) -> list[PoolSums]:
        """Sums over some nodes, or all, of every direction. Their variances include what the nodes share.

        Sums of sets of nodes of one question that have links between them cannot be added: ask for the union.
        """
        chosen_N = np.zeros(len(self.fit.nodes), np.bool_)
        chosen_N[slice(None) if chosen is None else chosen] = True
        plain = [pool_sums(alignments, chosen_N) for alignments in self.alignments]
        return plain if not len(self.fit.links) else self._shared(plain, chosen_N)

    def narrow_enough(self, width: float, *, judgement: Judgement) -> bool:
        """Whether every direction's pooled alignment has an interval no wider than this: then rounds may end early."""
        intervals = [pool([sums], judgement=judgement, seed=0) for sums in self.sums()]
        return all(
            one.pooled_low is not None and one.pooled_high is not None and one.pooled_high - one.pooled_low <= width
            for one in intervals
        )

    # A = Σ c·V̂, B = Σ V̂ᵀMV̂ - tr(MΣ): of B only the linear part 2MV is shared
    def _shared(self, plain: list[PoolSums], chosen_N: Bools) -> list[PoolSums]:
        """Replaces the variances of sums that count every node's errors as its own."""
        c_NKD = np.stack([self._coefficients(direction, chosen_N) for direction in self.directions], axis=2)
        tried_NKD = np.stack([neutral(self.rates, c_NK) for c_NK in np.moveaxis(c_NKD, 2, 0)], axis=2)
        slope_NK = np.where(chosen_N[:, None], norm_sq_slope(self.rates), 0.0)
        parts = noise(
            self.fit.chain,
            self.fit.links,
            self.fit.nodes,
            self.fit.bernoulli_NK,
            np.concatenate([tried_NKD, slope_NK[:, :, None]], axis=2),
        )
        own_norm = float(squared_error(self.rates, slope_NK).sum())
        norm_variance = float(parts[:, -1] @ parts[:, -1])
        own_D = self._own_variances(c_NKD, chosen_N)
        return [
            replace(
                sums,
                numerator_variance=float(parts[:, i] @ parts[:, i] + own_D[i]),
                norm_sq_variance=sums.norm_sq_variance - own_norm + norm_variance,
                covariance=float(parts[:, i] @ parts[:, -1]),
            )
            for i, sums in enumerate(plain)
        ]

    def _coefficients(self, direction: Direction, chosen_N: Bools) -> Floats:
        scored_N = chosen_N & self.rates.tried_NK.any(axis=1) & np.isfinite(direction.norm_N)
        return np.where(scored_N[:, None], coefficients(self.fit.nodes, direction), 0.0)

    def _own_variances(self, c_NKD: Floats, chosen_N: Bools) -> Floats:
        """What tails and entries without rollouts add: errors that no two nodes share."""
        nodes, rates = self.fit.nodes, self.rates
        value_NK = rates.shifted_NK + rates.reference_N[:, None]
        tails = [tail_inner(nodes, direction, value_NK, rates.smooth_NK) for direction in self.directions]
        tail_D = np.array([tail.variance_N[chosen_N & np.isfinite(tail.variance_N)].sum() for tail in tails])
        free_NKD = eliminate(uncut(self.fit.links, self.fit.chain.cut_E), nodes.mass_NK, c_NKD)
        untried_D: Floats = np.einsum("nkd,nk->d", free_NKD**2, rates.untried_NK)
        return tail_D + untried_D


def estimate(state: QuestionState, *, judgement: Judgement, seed: int, prior: Prior | None = None) -> Estimate:
    """Estimates everything from the outcomes of complete rounds; a prior that is given is kept."""
    fitted = fit(state.nodes, state.links, prior)
    return Estimate(
        fit=fitted,
        rates=pooled_rates(fitted),
        directions=state.directions,
        alignments=score_fit(fitted, state.directions, judgement=judgement, seed=seed),
    )
