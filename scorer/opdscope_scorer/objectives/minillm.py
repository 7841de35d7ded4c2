"""MiniLLM: the teacher's log-ratio of a token and of everything that follows it."""

import torch
from torch import Tensor

from opdscope_scorer.objectives.inputs import Need, ObjectiveInputs, centred
from opdscope_scorer.objectives.registry import register


@register(
    name="minillm",
    family="minillm",
    formula="f = log(q/P) + E[R_(t+1) | j]",
    loss="KL(P‖q) of whole continuations, the part after the token as a reward averaged over its length",
    source="Gu et al. 2024 (MiniLLM, arXiv 2306.08543), sec. 2.2: single-step decomposition, length normalisation",
    needs=(Need.TEACHER_RETURNS,),
    note=(
        "Extra cost: the teacher scores every continuation of the targeted rollouts. R is a mean per rollout, so its "
        "expectation is a mean of ratios. Cross-fit it: it comes from the rollouts that also estimate V."
    ),
)
def minillm(x: ObjectiveInputs) -> Tensor:
    """The next token is summed over exactly, what follows it is sampled."""
    assert x.return_NV is not None
    return centred(x, x.log_ratio_NV + x.return_NV)


def teacher_return(log_ratio_T: Tensor, *, normalise: bool = True) -> Tensor:
    """R_(t+1) of one continuation: the mean of log(q/P) over its sampled tokens after the forced one, or their sum.

    A continuation that ends at once has return 0.
    """
    if log_ratio_T.numel() == 0:
        return torch.zeros((), dtype=torch.float64)
    return log_ratio_T.double().mean() if normalise else log_ratio_T.double().sum()
