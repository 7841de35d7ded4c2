"""Estimates at every node: inner product, norm of the ideal direction, cosines, and their errors.

With V̂ of covariance Σ = diag(s) + ρGGᵀ (ρ = 0 unless nodes are pooled, see `chain`), π the masses, w the sums of
squared probabilities, S = Σ w:
⟨g, d⟩ = c·V,  c_k = inner_k - π_k Σ inner,  ‖g‖² = VᵀMV,  M = W - wπᵀ - πwᵀ + Sππᵀ   (DESIGN §2).
Neither changes when a constant is added to V.

Legend of shape suffixes: N nodes, K entries of a node, T recorded rollouts of tails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from opdscope_scorer.nodes import masked_sum, row_sum
from opdscope_scorer.tails import tail_inner, tail_norm_sq

if TYPE_CHECKING:
    from opdscope_scorer.nodes import Direction, Floats, Nodes
    from opdscope_scorer.rates import Rates
    from opdscope_scorer.tails import TailInner

# Below this a distillation direction is rounding: student and teacher agree.
NO_DIRECTION = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class IdealNorm:
    """Squared norm of the ideal direction at every node."""

    plug_in_N: Floats
    """From the rates as they are, the tail being one bucket: biased upward."""
    corrected_N: Floats
    """Unbiased; may be below 0."""
    variance_N: Floats
    """Estimated variance of `corrected`; unbiased, so it may be below 0 as well: use sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerProduct:
    """Inner product of ideal and distillation direction at every node."""

    plug_in_N: Floats
    """With the tail as one bucket."""
    unbiased_N: Floats
    """With the tail's recorded rollouts, where there are any."""
    variance_N: Floats
    """Variance of `unbiased`."""
    covariance_N: Floats
    """Covariance of `unbiased` and the corrected squared norm."""
    tail: TailInner
    """What the tail's recorded rollouts add."""


# ‖g‖² = Σ w (V - J)²;  E‖ĝ‖² - ‖g‖² = tr(MΣ) = Σ M_kk s_k + ρ GᵀMG,  M_kk = w_k (1 - 2π_k) + S π_k²
def ideal_norm(nodes: Nodes, rates: Rates) -> IdealNorm:
    """Plug-in and corrected squared norm of the ideal direction."""
    centred_NK = rates.shifted_NK - rates.mean_N[:, None]
    plug_in_N = row_sum(rates.sum_sq_NK * centred_NK**2)
    moved_N = row_sum(rates.gain_NK * _times_m(rates, rates.gain_NK))
    bias_N = row_sum(_diagonal(rates) * rates.unbiased_NK) + rates.shift_N * moved_N
    return IdealNorm(
        plug_in_N=plug_in_N,
        corrected_N=plug_in_N - bias_N + tail_norm_sq(nodes, rates.shifted_NK + rates.reference_N[:, None]),
        variance_N=_norm_sq_variance(rates),
    )


# ⟨g, d⟩ = c·V is linear: variance cᵀΣc, covariance with the squared norm 2 cᵀΣMV
def inner_product(nodes: Nodes, rates: Rates, direction: Direction) -> InnerProduct:
    """Inner product of the ideal direction with a distillation direction."""
    all_NK = coefficients(nodes, direction)
    c_NK = neutral(rates, all_NK)
    along_N, slope_NK = row_sum(c_NK * rates.gain_NK), _times_m(rates, rates.shifted_NK)
    plug_in_N = row_sum(c_NK * rates.shifted_NK)
    tail = tail_inner(nodes, direction, rates.shifted_NK + rates.reference_N[:, None], rates.smooth_NK)
    return InnerProduct(
        plug_in_N=plug_in_N,
        unbiased_N=plug_in_N + tail.correction_N,
        variance_N=squared_error(rates, c_NK) + row_sum(all_NK**2 * rates.untried_NK) + tail.variance_N,
        covariance_N=2 * row_sum(c_NK * rates.smooth_NK * slope_NK)
        + 2 * rates.shift_N * along_N * row_sum(rates.gain_NK * slope_NK),
        tail=tail,
    )


def neutral(rates: Rates, c_NK: Floats) -> Floats:
    """Coefficients of the entries that have a rate, when the others are given the mean of these; 0 for the others."""
    missing_N1 = masked_sum(c_NK, ~rates.tried_NK)[:, None]
    tried_NK: Floats = np.where(rates.tried_NK, c_NK, 0.0) + rates.mass_NK * missing_N1
    return tried_NK


# aᵀΣa
def squared_error(rates: Rates, function_NK: Floats) -> Floats:
    """Variance of a linear function of every node's estimates."""
    own_N: Floats = row_sum(function_NK**2 * rates.smooth_NK)
    return np.maximum(own_N + rates.shift_N * row_sum(function_NK * rates.gain_NK) ** 2, 0.0)


def norm_sq_slope(rates: Rates) -> Floats:
    """2MV: the squared norm's derivatives."""
    return 2 * _times_m(rates, rates.shifted_NK)


# c_k = inner_k - π_k Σ inner
def coefficients(nodes: Nodes, direction: Direction) -> Floats:
    """The inner product as a linear function of success probabilities."""
    c_NK: Floats = direction.inner_NK - nodes.mass_NK * direction.inner_NK.sum(axis=1, keepdims=True)
    return c_NK


def plug_in_cosine(norm: IdealNorm, inner: InnerProduct, direction: Direction) -> Floats:
    """Cosine with the rates as they are. NaN where one of the directions is 0."""
    return np.clip(_ratio(inner.plug_in_N, np.sqrt(norm.plug_in_N) * _existing(direction.norm_N)), -1.0, 1.0)


def corrected_cosine(norm: IdealNorm, inner: InnerProduct, direction: Direction) -> Floats:
    """Ratio of unbiased estimates, cut at ±1. NaN where the corrected squared norm is not above 0."""
    root_N = np.sqrt(np.maximum(norm.corrected_N, 0.0))
    return np.clip(_ratio(inner.unbiased_N, root_N * _existing(direction.norm_N)), -1.0, 1.0)


# P̃ = P / P_C,  g_k = P̃_k (V_k - Σ_C P̃ V),  d_k - P̃_k Σ_C d = P_k (f_k - Σ_C P̃ f)
def candidate_cosine(nodes: Nodes, rates: Rates, direction: Direction) -> Floats:
    """Cosine of both directions within the candidates alone, policies normalised to them. NaN where one is 0."""
    mask_NK = (nodes.token_NK >= 0) & rates.tried_NK
    mass_NK = np.where(mask_NK, nodes.mass_NK, 0.0)
    mass_NK = mass_NK / np.maximum(mass_NK.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    reference_N1 = np.take_along_axis(rates.shifted_NK, mass_NK.argmax(axis=1)[:, None], axis=1)
    value_NK = np.where(mask_NK, rates.shifted_NK - reference_N1, 0.0)
    g_NK = mass_NK * (value_NK - (mass_NK * value_NK).sum(axis=1, keepdims=True))
    d_NK = np.where(mask_NK, direction.total_NK, 0.0)
    d_NK = d_NK - mass_NK * d_NK.sum(axis=1, keepdims=True)
    norm_N = _existing(np.linalg.norm(d_NK, axis=1)) * np.linalg.norm(g_NK, axis=1)
    return np.clip(_ratio(row_sum(g_NK * d_NK), norm_N), -1.0, 1.0)


# Σ_k (q_k - P_k) V_k   (arXiv 2605.10889)
def teacher_advantage(nodes: Nodes, rates: Rates, direction: Direction) -> Floats:
    """By how much the teacher, taking this one token, would raise the success probability. The tail has one value."""
    value_NK = rates.shifted_NK + rates.reference_N[:, None]
    return row_sum((direction.teacher_mass_NK - nodes.mass_NK) * value_NK)


def _diagonal(rates: Rates) -> Floats:
    """Diagonal of M."""
    total_N1 = rates.sum_sq_NK.sum(axis=1, keepdims=True)
    diagonal_NK: Floats = rates.sum_sq_NK * (1 - 2 * rates.mass_NK) + total_N1 * rates.mass_NK**2
    return diagonal_NK


# Mx = w (x - π·x) - π Σ w (x - π·x)
def _times_m(rates: Rates, x_NK: Floats) -> Floats:
    weighted_NK = rates.sum_sq_NK * (x_NK - row_sum(rates.mass_NK * x_NK)[:, None])
    product_NK: Floats = weighted_NK - rates.mass_NK * weighted_NK.sum(axis=1, keepdims=True)
    return product_NK


# Var = 4 VᵀMΣMV + 2 T,  T = Σ_kl M²_kl σ²_k σ²_l with n/(n-1) on the diagonal; V̂ for V adds T to the first form
def _norm_sq_variance(rates: Rates) -> Floats:
    smooth_NK, slope_NK = rates.smooth_NK, _times_m(rates, rates.shifted_NK)
    linear_N = squared_error(rates, slope_NK)
    diagonal_NK: Floats = (_diagonal(rates) * smooth_NK) ** 2
    off_N = _squared_trace(rates) + _shift_trace(rates) - row_sum(diagonal_NK)
    pairs_N = off_N + row_sum(diagonal_NK * rates.pair_NK)
    return 4 * (linear_N - off_N - row_sum(diagonal_NK)) + 2 * pairs_N


# tr((MΣ)²) - tr((MS)²) = 2ρ GᵀMSMG + (ρ GᵀMG)²
def _shift_trace(rates: Rates) -> Floats:
    product_NK = _times_m(rates, rates.gain_NK)
    along_N: Floats = rates.shift_N * row_sum(rates.gain_NK * product_NK)
    return 2 * rates.shift_N * row_sum(product_NK**2 * rates.smooth_NK) + along_N**2


# tr((MΣ)²): M = W + a with a = Sππᵀ - wπᵀ - πwᵀ of rank 2, so that its square is made of three sums
def _squared_trace(rates: Rates) -> Floats:
    pi_NK, w_NK, v_NK = rates.mass_NK, rates.sum_sq_NK, rates.smooth_NK
    total_N = row_sum(w_NK)
    pp_N, ww_N, pw_N = (row_sum(v_NK * x_NK) for x_NK in (pi_NK**2, w_NK**2, pi_NK * w_NK))
    rank_two_N: Floats = (total_N * pp_N) ** 2 + 2 * pp_N * ww_N - 4 * total_N * pp_N * pw_N + 2 * pw_N**2
    a_NK = total_N[:, None] * pi_NK**2 - 2 * w_NK * pi_NK
    return rank_two_N + row_sum(v_NK**2 * (w_NK**2 + 2 * w_NK * a_NK))


def _existing(norm_N: Floats) -> Floats:
    return np.where(norm_N > NO_DIRECTION, norm_N, 0.0)


def _ratio(above_N: Floats, below_N: Floats) -> Floats:
    return np.where(below_N > 0, above_N / np.where(below_N > 0, below_N, 1.0), np.nan)
