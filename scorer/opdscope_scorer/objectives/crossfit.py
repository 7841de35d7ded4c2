"""Products of two directions that come from the same rollouts.

If f and V of a token are means over the same n rollouts, E[f̂ V̂] = f V + Cov(f, V)/n: the products are biased. Two
halves of the rollouts are independent, and all three products are bilinear, so a product across the halves is unbiased.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class CrossFitted(NamedTuple):
    """Unbiased estimates [N]; the squares can be negative, as any corrected square."""

    numerator_N: Tensor
    ideal_norm_sq_N: Tensor
    distill_norm_sq_N: Tensor


def cross_fitted(ideal_2NV: tuple[Tensor, Tensor], distill_2NV: tuple[Tensor, Tensor]) -> CrossFitted:
    """⟨g,d⟩, ‖g‖² and ‖d‖² from the directions that each half of the rollouts gives.

    d must be linear in what the rollouts estimate, as those of `grpo`, `minillm` and their mixtures are.
    """
    g_one, g_two = ideal_2NV
    d_one, d_two = distill_2NV
    dot = torch.linalg.vecdot
    return CrossFitted((dot(g_one, d_two) + dot(g_two, d_one)) / 2, dot(g_one, g_two), dot(d_one, d_two))
