"""Draws tokens from the sampling policy: temperature, then truncation to the nucleus.

The draw inverts the distribution function in float64 with one uniform number for every seed and absolute position, so
a sample does not depend on its neighbours in the batch.
Shapes: B rows, V vocabulary.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FIRST_NUCLEUS = 64


def uniforms(seed: int, end_position: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1), one for every absolute position below `end_position`; they depend on nothing else."""
    return np.random.Generator(np.random.Philox(key=seed)).random(end_position)


def sample(logits_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token for every row.

    Args:
        logits_BV: Logits.
        temperature_B: Divides the logits; float64, above 0.
        top_p_B: Mass of the nucleus; float64, in (0, 1].
        uniform_B: float64, in [0, 1).

    Returns:
        Token ids (B) and their log-probabilities in nats (B), float64.
    """
    probs_BV = torch.softmax(logits_BV.to(torch.float64, copy=True).div_(temperature_B[:, None]), dim=-1)
    truncated = torch.nonzero(top_p_B < 1.0)[:, 0]
    if len(truncated):
        probs_BV[truncated] = _nucleus(probs_BV[truncated], top_p_B[truncated])
    cumulative_BV = probs_BV.cumsum(dim=-1)
    mass_B = cumulative_BV[:, -1]
    # Rounding can lift u * mass up to the mass itself, beyond the last token.
    target_B = torch.minimum(uniform_B * mass_B, torch.nextafter(mass_B, torch.zeros_like(mass_B)))
    token_B = torch.searchsorted(cumulative_BV, target_B[:, None], right=True)[:, 0]
    prob_B = probs_BV.gather(1, token_B[:, None])[:, 0]
    return token_B, torch.log(prob_B / mass_B)


def _nucleus(probs_BV: Tensor, top_p_B: Tensor) -> Tensor:
    """Set all probabilities to 0 but the smallest set of likeliest tokens with mass `top_p`; of equals the first."""
    threshold_B = torch.zeros_like(top_p_B)
    kept_B = torch.zeros_like(top_p_B, dtype=torch.long)
    open_rows = torch.arange(len(top_p_B), device=top_p_B.device)
    count = _FIRST_NUCLEUS
    # Few tokens usually suffice, and finding them is far cheaper than sorting a vocabulary.
    while len(open_rows):
        count = min(count, probs_BV.shape[1])
        likeliest = torch.topk(probs_BV[open_rows], count).values
        before = likeliest.cumsum(dim=-1) - likeliest
        kept_B[open_rows] = (before < top_p_B[open_rows, None]).sum(dim=-1).clamp_(min=1)
        threshold_B[open_rows] = likeliest.gather(1, kept_B[open_rows, None] - 1)[:, 0]
        open_rows = open_rows[(kept_B[open_rows] == count) & (count < probs_BV.shape[1])]
        count *= 8
    above_BV, equal_BV = probs_BV > threshold_B[:, None], probs_BV == threshold_B[:, None]
    places_B = kept_B - above_BV.sum(dim=-1)
    keep_BV = above_BV | (equal_BV & (equal_BV.cumsum(dim=-1) <= places_B[:, None]))
    return torch.where(keep_BV, probs_BV, 0.0)
