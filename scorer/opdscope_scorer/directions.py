"""Directions in logit space: the ideal one, those of losses, and the angle between them.

All are τ ∂/∂z, so that they do not depend on the factor of the temperature.

Legend of shape suffixes: N nodes, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


# J = Σ_k P_k V_k,  g_j = P_j (V_j - J)   (arXiv 2605.10889)
def ideal_direction(p_NV: Tensor, value_NV: Tensor) -> Tensor:
    """Ascent of the success probability; `value` is that of the student forced to emit the token."""
    return softmax_direction(p_NV, value_NV)


# d_j = P_j (f_j - Σ_k P_k f_k): the softmax's Jacobian applied to f; the limit at P_j = 0 is 0
def softmax_direction(p_NV: Tensor, f_NV: Tensor) -> Tensor:
    """Direction of a score f of tokens. Where P is 0, f may be anything, infinite too."""
    finite_NV: Tensor = torch.where(p_NV > 0, f_NV, 0.0)
    mean_N1: Tensor = (p_NV * finite_NV).sum(dim=-1, keepdim=True)
    d_NV: Tensor = p_NV * (finite_NV - mean_N1)
    return d_NV


# cos = ⟨a, b⟩ / (‖a‖ ‖b‖)
def cosine(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    """Cosine of every pair of rows; NaN where one is 0."""
    inner_N: Tensor = (a_NV * b_NV).sum(dim=-1)
    norms_N: Tensor = a_NV.norm(dim=-1) * b_NV.norm(dim=-1)
    return inner_N / norms_N
