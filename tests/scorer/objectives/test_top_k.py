"""Top-K variants against autograd of their losses, token by token.

Legend: V tokens, K tokens of a support.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opdscope_scorer.objectives import InvalidObjectiveError, ObjectiveInputs, parse_objective
from torch import Tensor

LIMITS = settings(max_examples=60, deadline=None, derandomize=True)
SOURCES = st.sampled_from(["student", "teacher", "union", "intersection"])


@st.composite
def policies(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Logits of student and teacher, and k."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    size = draw(st.integers(2, 24))
    z, zq = draw(st.floats(0.1, 6)) * torch.randn(2, size, dtype=torch.float64, generator=generator)
    return z, zq, draw(st.integers(1, size + 3))


def support_of(z: Tensor, zq: Tensor, k: int, source: str) -> list[int]:
    """The K tokens as sets."""
    student, teacher = (set(one.argsort(descending=True)[:k].tolist()) for one in (z, zq))
    chosen = {
        "student": student,
        "teacher": teacher,
        "union": student | teacher,
        "intersection": student & teacher,
    }
    return sorted(chosen[source])


def compared(p: Tensor, q: Tensor, inside: list[int], form: str) -> tuple[Tensor, Tensor]:
    """The two vectors of which the divergence is taken."""
    others = [token for token in range(len(p)) if token not in inside]
    if form == "renormalised":
        return p[inside] / p[inside].sum(), q[inside] / q[inside].sum()
    if form == "tail_bucket" and others:
        return torch.cat((p[inside], p[others].sum()[None])), torch.cat((q[inside], q[others].sum()[None]))
    return p[inside], q[inside]


def divergence(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """Forward KL, reverse KL or the divergence between them, also of vectors that do not sum to 1."""
    if beta in {0, 1}:
        return (p * (p / q).log()).sum() if beta else (q * (q / p).log()).sum()
    m = beta * q + (1 - beta) * p
    return (beta * q * (q / m).log() + (1 - beta) * p * (p / m).log()).sum()


def assert_descent(loss: Tensor, z: Tensor, actual: Tensor) -> None:
    """The direction is minus the gradient, to 1e-9 of its largest entry or a few ulps of 1."""
    (gradient,) = torch.autograd.grad(loss, z)
    assert (actual + gradient).abs().max() <= 1e-9 * gradient.abs().max() + 2e-14
    assert actual.sum().abs() <= 1e-14


def direction(text: str, z: Tensor, zq: Tensor) -> Tensor:
    """The objective at one node, at temperature 1."""
    policies = {"log_p_NV": z.detach().log_softmax(-1)[None], "log_q_NV": zq.log_softmax(-1)[None]}
    return parse_objective(text).direction(ObjectiveInputs(**policies))[0]


@pytest.mark.parametrize(
    ("name", "beta", "form"),
    [
        ("reverse_kl", 1.0, "unnormalised"),
        ("reverse_kl", 1.0, "renormalised"),
        ("reverse_kl", 1.0, "tail_bucket"),
        ("forward_kl", 0.0, "unnormalised"),
        ("forward_kl", 0.0, "renormalised"),
        ("forward_kl", 0.0, "tail_bucket"),
        ("jsd", 0.3, "renormalised"),
        ("jsd", 0.3, "tail_bucket"),
    ],
)
@given(at=policies(), source=SOURCES)
@LIMITS
def test_a_loss_on_a_support(name: str, beta: float, form: str, at: tuple[Tensor, Tensor, int], source: str) -> None:
    """What is outside of K is left out, renormalised away, or one bucket."""
    z, zq, k = at
    inside = support_of(z, zq, k, source)
    assume(inside)
    z.requires_grad_()
    loss = divergence(*compared(z.softmax(-1), zq.softmax(-1), inside, form), beta)

    written = f", beta={beta}" if name == "jsd" else ""
    actual = direction(f"top_k_{name}(k={k}, form={form}, source={source}{written})", z, zq)

    assert_descent(loss, z, actual)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
@given(at=policies(), source=SOURCES)
@LIMITS
def test_a_surrogate_with_stopped_gradients(name: str, at: tuple[Tensor, Tensor, int], source: str) -> None:
    """Reverse KL keeps the log-ratio as a weight; forward KL's weight is the teacher's and stopped anyway."""
    z, zq, k = at
    inside = support_of(z, zq, k, source)
    z.requires_grad_()
    p, q = z.softmax(-1)[inside], zq.softmax(-1)[inside]
    weight = (p * (p / q).log()).detach() if name == "reverse_kl" else -q
    loss = (weight * p.log()).sum() + 0 * z.sum()

    assert_descent(loss, z, direction(f"top_k_{name}(k={k}, form=stop_gradient, source={source})", z, zq))


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
@given(at=policies(), floor=st.floats(-10, -1))
@LIMITS
def test_a_floor_on_a_support(name: str, at: tuple[Tensor, Tensor, int], floor: float) -> None:
    """The clamp of verl, before the sum over the teacher's K tokens."""
    z, zq, k = at
    inside = support_of(z, zq, k, "teacher")
    z.requires_grad_()
    log_p, log_q = (one.log_softmax(-1)[inside].clamp_min(floor) for one in (z, zq))
    first, second = (log_p, log_q) if name == "reverse_kl" else (log_q, log_p)
    loss = (first.exp() * (first - second)).sum()

    text = f"top_k_{name}(k={k}, form=unnormalised, source=teacher, floor={floor!r})"
    assert_descent(loss, z, direction(text, z, zq))


@given(at=policies(), floor=st.floats(-10, -1), high=st.floats(0.01, 2))
@LIMITS
def test_a_clamped_loss_silences_the_node(at: tuple[Tensor, Tensor, int], floor: float, high: float) -> None:
    """A truncated forward KL below 0 or above the clamp has no gradient at all, as in verl."""
    z, zq, k = at
    inside = support_of(z, zq, k, "teacher")
    z.requires_grad_()
    log_p, log_q = (one.log_softmax(-1)[inside].clamp_min(floor) for one in (z, zq))
    loss = (log_q.exp() * (log_q - log_p)).sum().clamp(0.0, high)

    text = (
        f"top_k_forward_kl(k={k}, form=unnormalised, source=teacher, floor={floor!r}, loss_low=0, loss_high={high!r})"
    )
    assert_descent(loss, z, direction(text, z, zq))


def test_an_empty_intersection_has_no_direction_once_renormalised() -> None:
    """Nothing is compared: the row is NaN, and other nodes of the batch are not touched."""
    agree, apart = torch.tensor([3.0, 0.0, -3.0]).log_softmax(-1), torch.tensor([-3.0, 0.0, 3.0]).log_softmax(-1)
    inputs = ObjectiveInputs(log_p_NV=torch.stack((agree, agree)), log_q_NV=torch.stack((apart, agree)))

    renormalised = parse_objective("top_k_reverse_kl(k=1, form=renormalised, source=intersection)").direction(inputs)
    unnormalised = parse_objective("top_k_reverse_kl(k=1, form=unnormalised, source=intersection)").direction(inputs)

    assert renormalised[0].isnan().all()
    assert renormalised[1].tolist() == [0.0, 0.0, 0.0]
    assert unnormalised[0].tolist() == [0.0, 0.0, 0.0]


def test_a_token_of_the_support_gains_only_above_e_times_its_probability() -> None:
    """The unnormalised reverse form pushes tokens down that the teacher likes better, but less than e times."""
    p = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    q = torch.tensor([0.4, 0.58, 0.02], dtype=torch.float64)

    moved = direction("top_k_reverse_kl(k=2, form=unnormalised, source=teacher)", p.log(), q.log())

    pull = moved / p
    assert pull[0] < pull[2] < pull[1]


def test_ranks_of_a_bucketed_node_are_refused() -> None:
    """A bucket is no token, so a top-K objective names what it would need."""
    log = torch.full((1, 4), 0.25).log()

    with pytest.raises(InvalidObjectiveError, match=r"top_k_jsd.* needs full_vocabulary"):
        parse_objective("top_k_jsd").direction(ObjectiveInputs(log_p_NV=log, log_q_NV=log, bucketed=True))
