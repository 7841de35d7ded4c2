"""Total variation, α-divergences and f-divergences of r = q/P."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opdscope_scorer.objectives.base import Parameter
from opdscope_scorer.objectives.inputs import ObjectiveInputs, centred, projected
from opdscope_scorer.objectives.kl import forward_kl, reverse_kl
from opdscope_scorer.objectives.registry import register


@register(
    name="total_variation",
    family="divergences",
    formula="f = ½ sign(q - P)",
    loss="½ Σ |q - P|",
    source="Wen et al. 2023 (f-DISTILL, arXiv 2307.15190)",
    note="Not differentiable at q = P, where f is 0.",
)
def total_variation(x: ObjectiveInputs) -> Tensor:
    """The sign is decided on float64 log-probabilities."""
    return centred(x, 0.5 * torch.sign(x.log_ratio_NV))


@register(
    name="alpha_divergence",
    family="divergences",
    formula="f = (q/P)^α / α",
    loss="(1 - Σ q^α P^(1-α)) / (α(1-α))",
    source="Amari 2009 (doi 10.1109/TIT.2009.2030485); Minka 2005 (MSR-TR-2005-173)",
    parameters=(Parameter("alpha", 0.5, "order", low=-3, high=3),),
    note="α = 1 is forward and α = 0 reverse KL, its limits. Infinite where P = 0 < q if α > 1, q = 0 < P if α <= 0.",
)
def alpha_divergence(x: ObjectiveInputs, *, alpha: float) -> Tensor:
    """The constant 1/α is taken from f, so that small α keep their digits."""
    if alpha == 1:
        return forward_kl(x)
    if alpha == 0:
        return reverse_kl(x)
    weight_NV = x.p_NV * torch.expm1(alpha * x.log_ratio_NV) / alpha
    at_zero = torch.inf if alpha > 1 else 0.0
    return projected(x, torch.where(x.played_NV | (x.q_NV == 0), weight_NV, at_zero))


@dataclass(frozen=True)
class Generator:
    """The convex function φ of an f-divergence Σ P φ(q/P).

    Attributes:
        formula: φ, as it is written.
        phi: φ(r).
        derivative: φ'(r).
        at_zero: f where q = 0 < P, or -∞ for no direction.
        slope: f/r for r → ∞, that is where P = 0 < q, or ∞ for no direction.
    """

    formula: str
    phi: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    at_zero: float
    slope: float


GENERATORS = {
    "hellinger": Generator("(√r - 1)²", lambda r: (r.sqrt() - 1) ** 2, lambda r: 1 - r.rsqrt(), -1.0, 0.0),
    "jeffreys": Generator("(r - 1) log r", lambda r: (r - 1) * r.log(), lambda r: r.log() + 1 - 1 / r, -torch.inf, 1.0),
    "le_cam": Generator(
        "(r - 1)² / (2r + 2)",
        lambda r: (r - 1) ** 2 / (2 * r + 2),
        lambda r: 0.5 - 2 / (r + 1) ** 2,
        -0.5,
        0.0,
    ),
    "neyman": Generator("(1 - r)² / r", lambda r: (1 - r) ** 2 / r, lambda r: 1 - r**-2, -torch.inf, 0.0),
    "pearson": Generator("(r - 1)²", lambda r: (r - 1) ** 2, lambda r: 2 * (r - 1), -1.0, torch.inf),
}


def f_divergence_of(x: ObjectiveInputs, generator: Generator) -> Tensor:
    """Gives P (f - f̄) with f = r φ'(r) - φ(r), for any φ: what a plug-in needs to add its own."""
    r_NV = x.ratio_NV
    pull_NV = torch.where(r_NV > 0, r_NV * generator.derivative(r_NV) - generator.phi(r_NV), generator.at_zero)
    unplayed_NV = torch.where(x.q_NV > 0, x.q_NV * generator.slope, 0.0)
    return projected(x, torch.where(x.played_NV, x.p_NV * pull_NV, unplayed_NV))


@register(
    name="f_divergence",
    family="divergences",
    formula="f = r φ'(r) - φ(r), r = q/P",
    loss="Σ P φ(q/P), φ = " + "; ".join(f"{name}: {one.formula}" for name, one in GENERATORS.items()),
    source="Wen et al. 2023 (f-DISTILL, arXiv 2307.15190); Csiszár 1967",
    parameters=(Parameter("phi", "hellinger", "the convex function φ", choices=tuple(GENERATORS)),),
    note="Pearson has no direction where P = 0 < q; Neyman and Jeffreys have none where q = 0 < P.",
)
def f_divergence(x: ObjectiveInputs, *, phi: str) -> Tensor:
    """The named generators; `f_divergence_of` takes any."""
    return f_divergence_of(x, GENERATORS[phi])
