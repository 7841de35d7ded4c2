"""The policy that samples, from logits.

Legend of shape suffixes: N nodes, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


# softmax(z/τ), then the nucleus of Holtzman et al. 2020 (arXiv 1904.09751), normalised again
def sampling_log_probs(logits_NV: Tensor, *, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Log-probabilities, in float64, of sampling at a temperature from the nucleus.

    The nucleus is the smallest set of likeliest tokens whose mass is at least `top_p`. Tokens outside have -inf.
    """
    log_p_NV: Tensor = torch.log_softmax(logits_NV.double() / temperature, dim=-1)
    if top_p >= 1.0:
        return log_p_NV
    kept_NV = log_p_NV.masked_fill(~nucleus(log_p_NV, top_p), -torch.inf)
    truncated_NV: Tensor = torch.log_softmax(kept_NV, dim=-1)
    return truncated_NV


# token of rank r is kept iff the mass of ranks < r is below top_p; equal tokens rank by their id
def nucleus(log_p_NV: Tensor, top_p: float) -> Tensor:
    """Mask of the tokens that truncation at `top_p` keeps. The likeliest is always kept."""
    sorted_NV, order_NV = log_p_NV.exp().sort(dim=-1, descending=True, stable=True)
    before_NV = sorted_NV.cumsum(dim=-1) - sorted_NV
    keep_NV = before_NV < top_p
    keep_NV[..., 0] = True
    return torch.zeros_like(keep_NV).scatter(-1, order_NV, keep_NV)


# H = -Σ P log P, with 0 log 0 = 0
def entropy_nats(log_p_NV: Tensor) -> Tensor:
    """Entropy of every row."""
    entropy_N: Tensor = torch.special.entr(log_p_NV.exp()).sum(dim=-1)
    return entropy_N


# KL(q‖P) = Σ q (log q - log P), with 0 log 0 = 0
def kl_nats(log_q_NV: Tensor, log_p_NV: Tensor) -> Tensor:
    """Divergence of q from P, row by row; infinite where q samples what P excludes."""
    q_NV = log_q_NV.exp()
    divergence_N: Tensor = torch.where(q_NV > 0, q_NV * (log_q_NV - log_p_NV), 0.0).sum(dim=-1)
    return divergence_N
