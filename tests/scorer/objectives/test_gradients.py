"""Every direction against autograd of its loss, written here a second time and without looking at f.

Legend: N nodes, V tokens, K tokens of a support.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opdscope_scorer.objectives import BoundObjective, ObjectiveInputs, parse_objective
from torch import Tensor

Loss = Callable[..., Tensor]
LIMITS = settings(max_examples=40, deadline=None, derandomize=True)


def kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a‖b) over the tokens of a that have mass."""
    mass = a > 0
    return (a[mass] * (a[mass].log() - b[mass].log())).sum()


def jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence with its two conventions."""
    if beta in {0, 1}:
        return kl(p, q) if beta else kl(q, p)
    m = beta * q + (1 - beta) * p
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def f_divergence(p: Tensor, q: Tensor, phi: str) -> Tensor:
    """Each in the form of its own literature, not as Σ P φ(q/P)."""
    if phi == "hellinger":
        return ((q.sqrt() - p.sqrt()) ** 2).sum()
    if phi == "jeffreys":
        return kl(q, p) + kl(p, q)
    if phi == "le_cam":
        return ((q - p) ** 2 / (2 * (q + p))).sum()
    return ((q - p) ** 2 / (q if phi == "neyman" else p)).sum()


def alpha_divergence(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    """Its limits are the two KL divergences."""
    if alpha in {0, 1}:
        return kl(q, p) if alpha else kl(p, q)
    return (1 - (q**alpha * p ** (1 - alpha)).sum()) / (alpha * (1 - alpha))


def floored(first: Tensor, second: Tensor, floor: float) -> Tensor:
    """KL of clamped log-probabilities, as verl computes it."""
    first, second = first.log().clamp_min(floor), second.log().clamp_min(floor)
    return (first.exp() * (first - second)).sum()


def expectation(p: Tensor, q: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The expected loss over the sampled token, which itself carries no gradient."""
    log_ratio = q.log() - p.log()
    losses = [p[y].detach() * loss_of(torch.stack((log_ratio[y], p[y].log()))) for y in range(len(p))]
    return torch.stack(losses).sum()


def opd(p: Tensor, q: Tensor, clip: float) -> Tensor:
    """Minus the advantage times the log-probability."""
    return expectation(p, q, lambda y: -y[0].detach().clamp(-clip, clip) * y[1])


def vopd(p: Tensor, q: Tensor) -> Tensor:
    """The same with the value function as baseline."""
    value = -kl(p, q).detach()
    return expectation(p, q, lambda y: -(y[0].detach() - value) * y[1])


def k3(p: Tensor, q: Tensor, ratio_clip: float, loss_clip: float) -> Tensor:
    """With verl's two clamps."""

    def loss(y: Tensor) -> Tensor:
        log_ratio = y[0].clamp(-ratio_clip, ratio_clip)
        return (log_ratio.exp() - log_ratio - 1).clamp(-loss_clip, loss_clip)

    return expectation(p, q, loss)


def logits_kd(z: Tensor, zq: Tensor, T: float) -> Tensor:
    """Hinton's loss."""
    return T**2 * kl((zq / T).softmax(-1), (z / T).softmax(-1))


def standardised_kd(z: Tensor, zq: Tensor, T: float, sigma: str) -> Tensor:
    """As the authors' code."""
    s, sq = ((one - one.mean()) / (1e-7 + one.std(correction=int(sigma == "sample"))) for one in (z, zq))
    return logits_kd(s, sq, T)


POLICIES: dict[str, tuple[Loss, dict[str, Any]]] = {
    "reverse_kl": (kl, {}),
    "forward_kl": (lambda p, q: kl(q, p), {}),
    "gkd_jsd": (jsd, {"beta": st.sampled_from([0.0, 1.0]) | st.floats(0.01, 0.99)}),
    "skew_reverse_kl": (lambda p, q, alpha: kl(p, alpha * p + (1 - alpha) * q), {"alpha": st.floats(0, 0.95)}),
    "skew_forward_kl": (lambda p, q, alpha: kl(q, alpha * q + (1 - alpha) * p), {"alpha": st.floats(0, 0.95)}),
    "total_variation": (lambda p, q: (p - q).abs().sum() / 2, {}),
    "alpha_divergence": (alpha_divergence, {"alpha": st.sampled_from([0.0, 1.0, -1.0, 2.0]) | st.floats(0.05, 0.95)}),
    "f_divergence": (f_divergence, {"phi": st.sampled_from(["hellinger", "jeffreys", "le_cam", "neyman", "pearson"])}),
    "sampled_opd": (opd, {"clip": st.floats(0.1, 20)}),
    "vopd": (vopd, {}),
    "k2": (lambda p, q: expectation(p, q, lambda y: y[0] ** 2 / 2), {}),
    "k3": (k3, {"ratio_clip": st.floats(1, 20), "loss_clip": st.floats(0.1, 50)}),
}
FLOORED: dict[str, Loss] = {
    "reverse_kl": floored,
    "forward_kl": lambda p, q, floor: floored(q, p, floor),
}
LOGITS: dict[str, tuple[Loss, dict[str, Any]]] = {
    "temperature_kd": (logits_kd, {"T": st.floats(0.3, 8)}),
    "logit_standardised_kd": (
        standardised_kd,
        {"T": st.floats(0.3, 8), "sigma": st.sampled_from(["sample", "population"])},
    ),
}


@st.composite
def logits(draw: st.DrawFn, largest: float = 8.0) -> tuple[Tensor, Tensor, float]:
    """Logits of student and teacher, flat to peaked, near or far from each other, and the temperature of the loss."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    size = draw(st.integers(2, 24))
    student, apart = torch.randn(2, size, dtype=torch.float64, generator=generator)
    student *= draw(st.floats(0.1, largest))
    return student, student + apart * draw(st.floats(0.01, 6)), draw(st.floats(0.5, 3))


def inputs_of(z: Tensor, zq: Tensor, tau: float) -> ObjectiveInputs:
    """One node."""
    policies = {"log_p_NV": (z / tau).log_softmax(-1)[None], "log_q_NV": (zq / tau).log_softmax(-1)[None]}
    return ObjectiveInputs(**policies, temperature=tau, student_logits_NV=z[None], teacher_logits_NV=zq[None])


def expected_direction(loss: Callable[[Tensor], Tensor], z: Tensor, tau: float) -> Tensor:
    """Minus τ times the gradient in the logits."""
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z), z)
    return -tau * gradient


def assert_same(expected: Tensor, actual: Tensor) -> None:
    """Largest error 1e-9 of the largest entry; autograd of the loss itself is only exact to a few ulps of 1."""
    assert actual.isfinite().all()
    assert (expected - actual).abs().max() <= 1e-9 * expected.abs().max() + 2e-14


@pytest.mark.parametrize("name", POLICIES)
@given(data=st.data(), at=logits())
@LIMITS
def test_directions_of_policies(name: str, data: st.DataObject, at: tuple[Tensor, Tensor, float]) -> None:
    """Losses of P and q at the temperature of the loss."""
    (z, zq, tau), (loss, parameters) = at, POLICIES[name]
    arguments = {key: data.draw(values) for key, values in parameters.items()}
    q = (zq / tau).softmax(-1)

    expected = expected_direction(lambda z: loss((z / tau).softmax(-1), q, **arguments), z, tau)

    assert_same(expected, bound(name, arguments).direction(inputs_of(z, zq, tau))[0])


@pytest.mark.parametrize("name", FLOORED)
@given(at=logits(), floor=st.floats(-12, -0.5))
@LIMITS
def test_directions_of_clamped_log_probabilities(name: str, at: tuple[Tensor, Tensor, float], floor: float) -> None:
    """A floor silences tokens below it."""
    z, zq, tau = at
    q = (zq / tau).softmax(-1)

    expected = expected_direction(lambda z: FLOORED[name]((z / tau).softmax(-1), q, floor), z, tau)

    assert_same(expected, bound(name, {"floor": floor}).direction(inputs_of(z, zq, tau))[0])


@pytest.mark.parametrize("name", LOGITS)
@given(data=st.data(), at=logits())
@LIMITS
def test_directions_of_logits(name: str, data: st.DataObject, at: tuple[Tensor, Tensor, float]) -> None:
    """Losses at a temperature of their own, brought to τ·∂/∂z with the τ of the run."""
    (z, zq, tau), (loss, parameters) = at, LOGITS[name]
    arguments = {key: data.draw(values) for key, values in parameters.items()}

    expected = expected_direction(lambda z: loss(z, zq, **arguments), z, tau)

    assert_same(expected, bound(name, arguments).direction(inputs_of(z, zq, tau))[0])


@given(at=logits(), weights=st.tuples(*[st.floats(-2, 2).filter(bool)] * 3))
@LIMITS
def test_a_mixture_is_the_direction_of_the_summed_loss(
    at: tuple[Tensor, Tensor, float], weights: tuple[float, float, float]
) -> None:
    """Losses at the loss's temperature and at one of their own add up in one convention."""
    (z, zq, tau), (a, b, c) = at, weights
    q = (zq / tau).softmax(-1)

    def loss(z: Tensor) -> Tensor:
        p = (z / tau).softmax(-1)
        return a * kl(p, q) + b * jsd(p, q, 0.3) + c * logits_kd(z, zq, 4.0)

    text = f"{a!r}*reverse_kl + {b!r}*gkd_jsd(beta=0.3) + {c!r}*temperature_kd(T=4)".replace("+ -", "- ")
    assert_same(expected_direction(loss, z, tau), parse_objective(text).direction(inputs_of(z, zq, tau))[0])


def bound(name: str, arguments: dict[str, Any]) -> BoundObjective:
    """The objective as a user writes it."""
    return parse_objective(f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})")
