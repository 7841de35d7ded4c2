"""The two Kullback-Leibler divergences over the whole vocabulary."""

from torch import Tensor

from opdscope_scorer.objectives.base import ObjectiveInputs, centred, closed
from opdscope_scorer.objectives.registry import register


@register(
    name="reverse_kl",
    family="kl",
    formula="f = log(q/P)",
    loss="KL(P‖q) = Σ P log(P/q)",
    source="Gu et al. 2024 (MiniLLM, arXiv 2306.08543), eq. 1",
    note="No direction exists where the teacher excludes a token that the student plays.",
)
def reverse_kl(x: ObjectiveInputs) -> Tensor:
    """Gives P (log(q/P) + KL(P‖q))."""
    return centred(x, x.log_ratio_NV)


@register(
    name="forward_kl",
    family="kl",
    formula="f = q/P, d = q - P",
    loss="KL(q‖P) = Σ q log(q/P)",
    source="Hinton et al. 2015 (arXiv 1503.02531), at temperature 1",
    note="d = q where P = 0, by continuity.",
)
def forward_kl(x: ObjectiveInputs) -> Tensor:
    """Gives q - P, which unlike P·q/P exists at P = 0."""
    return closed(x, x.q_NV - x.p_NV)
