"""Exact oracles: a tiny model in float64 whose continuations are all enumerated."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from enumeration import exact_values, next_logits
from opdscope_scorer.directions import cosine, ideal_direction, softmax_direction
from opdscope_scorer.estimator import ideal_norm, inner_product, plug_in_cosine
from opdscope_scorer.nodes import Direction, Nodes
from opdscope_scorer.objectives import ObjectiveInputs, parse_objective
from opdscope_scorer.rates import exact_rates
from opdscope_scorer.reduction import Outcomes, reduce_direction, reduce_nodes
from tiny import tiny_gpt2
from torch import Tensor

VOCABULARY = 6
HORIZON = 3
NODES = 200
TAU = 0.7


def kl(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    """KL(a‖b), row by row."""
    return (a_NV * (a_NV.log() - b_NV.log())).sum(dim=-1)


def jsd(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """The loss of generalised JSD with β = 0.3."""
    m_NV = 0.3 * q_NV + 0.7 * p_NV
    return 0.3 * kl(q_NV, m_NV) + 0.7 * kl(p_NV, m_NV)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse_kl": kl,
    "forward_kl": lambda p_NV, q_NV: kl(q_NV, p_NV),
    "gkd_jsd(beta=0.3)": jsd,
}


@dataclass(frozen=True)
class Enumerated:
    """Student's and teacher's logits at all nodes, and exact success probabilities."""

    logits_NV: Tensor
    teacher_logits_NV: Tensor
    value_NV: Tensor

    @property
    def log_p_NV(self) -> Tensor:
        """The student's policy."""
        return (self.logits_NV / TAU).log_softmax(dim=-1)

    @property
    def log_q_NV(self) -> Tensor:
        """The teacher's."""
        return (self.teacher_logits_NV / TAU).log_softmax(dim=-1)

    def success_probability(self, logits_NV: Tensor) -> Tensor:
        """J as a function of the logits at the nodes."""
        return ((logits_NV / TAU).softmax(dim=-1) * self.value_NV).sum(dim=-1)


@pytest.fixture(scope="module")
def nodes() -> Enumerated:
    """Random prefixes; the teacher is the same model with a hint before them."""
    model = tiny_gpt2(3, vocabulary_size=VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    prefixes = [torch.randint(1, VOCABULARY, (NODES // 5, length), generator=generator) for length in range(4, 9)]
    hint = torch.tensor([[2, 5, 1]]).expand(NODES // 5, -1)
    return Enumerated(
        logits_NV=torch.cat([next_logits(model, some) for some in prefixes]),
        teacher_logits_NV=torch.cat([next_logits(model, torch.cat([hint, some], dim=1)) for some in prefixes]),
        value_NV=torch.cat([exact_values(model, some, HORIZON, lambda out: sum(out) % 3 == 1) for some in prefixes]),
    )


def gradient(function: Callable[[Tensor], Tensor], logits_NV: Tensor) -> Tensor:
    """τ ∂/∂z of a function of every node."""
    logits_NV = logits_NV.clone().requires_grad_()
    (gradient_NV,) = torch.autograd.grad(function(logits_NV).sum(), logits_NV)
    return TAU * gradient_NV


def reduce(nodes: Enumerated, candidates: int, d_NV: Tensor) -> tuple[Nodes, Direction]:
    """The reduced form with the first tokens as candidates."""
    outcomes = Outcomes(
        tokens=range(candidates), successes=[0] * candidates, trials=[0] * candidates, known=[False] * candidates
    )
    reduced = reduce_nodes(nodes.log_p_NV, [outcomes] * NODES, [str(n) for n in range(NODES)])
    return reduced, reduce_direction(reduced, nodes.log_p_NV, d_NV, nodes.log_q_NV, teacher="hint", objective="o")


def test_enumeration_equals_the_definition() -> None:
    """Success probabilities by induction are those of a sum over complete outputs, which end at the end token."""
    model = tiny_gpt2(3, vocabulary_size=3)

    value_NV = exact_values(model, torch.tensor([[1]]), 2, lambda output: output in {(0,), (1, 0), (1, 2), (2, 1)})

    after_1_V, after_2_V = next_logits(model, torch.tensor([[1, 1], [1, 2]])).softmax(dim=-1)
    expected_V = torch.stack([torch.ones(()).double(), after_1_V[0] + after_1_V[2], after_2_V[1]])
    torch.testing.assert_close(value_NV[0], expected_V, rtol=0, atol=1e-14)


def test_ideal_direction_equals_autograd_of_the_exact_success_probability(nodes: Enumerated) -> None:
    """The gradient of J in the node's logits is the ideal direction."""
    expected_NV = gradient(nodes.success_probability, nodes.logits_NV)

    g_NV = ideal_direction(nodes.log_p_NV.exp(), nodes.value_NV)

    assert (g_NV - expected_NV).abs().max() < 1e-9
    assert g_NV.norm(dim=-1).min() > 1e-4


@pytest.mark.parametrize("spec", LOSSES)
def test_plug_in_cosine_of_exact_values_equals_the_cosine_of_autograd_gradients(nodes: Enumerated, spec: str) -> None:
    """The whole way (objective, reduction, estimator) agrees with differentiating the loss that a trainer minimises."""
    q_NV = nodes.log_q_NV.exp()
    descent_NV = -gradient(lambda z_NV: LOSSES[spec]((z_NV / TAU).softmax(dim=-1), q_NV), nodes.logits_NV)
    expected_N = cosine(gradient(nodes.success_probability, nodes.logits_NV), descent_NV)
    d_NV = parse_objective(spec).direction(ObjectiveInputs(log_p_NV=nodes.log_p_NV, log_q_NV=nodes.log_q_NV))
    reduced, direction = reduce(nodes, VOCABULARY, d_NV)
    rates = exact_rates(reduced, nodes.value_NV.numpy())

    plug_in_N = plug_in_cosine(ideal_norm(reduced, rates), inner_product(reduced, rates, direction), direction)

    assert (d_NV - descent_NV).abs().max() < 1e-9
    assert np.abs(plug_in_N - expected_N.numpy()).max() < 1e-9


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("beta", [0.01, 1.0, 100.0])
def test_teacher_tilted_by_the_values_is_perfectly_aligned(nodes: Enumerated, sign: float, beta: float) -> None:
    """A teacher q ∝ P exp(±V/β) gives alignment ±1 under reverse KL, for any β."""
    log_q_NV = (nodes.log_p_NV + sign * nodes.value_NV / beta).log_softmax(dim=-1)
    d_NV = parse_objective("reverse_kl").direction(ObjectiveInputs(log_p_NV=nodes.log_p_NV, log_q_NV=log_q_NV))
    reduced, direction = reduce(nodes, VOCABULARY, d_NV)
    rates = exact_rates(reduced, nodes.value_NV.numpy())

    plug_in_N = plug_in_cosine(ideal_norm(reduced, rates), inner_product(reduced, rates, direction), direction)

    assert np.abs(plug_in_N - sign).max() < 1e-9


def test_one_step_along_a_direction_changes_success_as_predicted(nodes: Enumerated) -> None:
    """Moving τ·z by η·d changes J by η⟨g, d⟩, with an error that falls with the square of η."""
    d_NV = softmax_direction(nodes.log_p_NV.exp(), nodes.log_q_NV - nodes.log_p_NV)
    predicted_N = (ideal_direction(nodes.log_p_NV.exp(), nodes.value_NV) * d_NV).sum(dim=-1)
    before_N = nodes.success_probability(nodes.logits_NV)

    def error_N(eta: float) -> Tensor:
        change_N = nodes.success_probability(nodes.logits_NV + TAU * eta * d_NV) - before_N
        return (change_N - eta * predicted_N).abs()

    large_N, small_N = error_N(1e-2), error_N(1e-3)
    curved_N = large_N > 1e-7
    assert curved_N.sum() > NODES / 2
    assert (large_N / small_N)[curved_N].median() == pytest.approx(100, rel=0.05)
    assert small_N.max() < 1e-5 * predicted_N.abs().max() / 1e-2


@pytest.mark.parametrize("candidates", [1, 2, 4])
def test_tail_bucket_equals_full_enumeration_with_one_value_for_the_tail(nodes: Enumerated, candidates: int) -> None:
    """With V_R for every tail token, inner product and norm over entries are those over the full vocabulary."""
    p_NV = nodes.log_p_NV.exp()
    d_NV = softmax_direction(p_NV, nodes.log_q_NV - nodes.log_p_NV)
    tail_N1 = (p_NV * nodes.value_NV)[:, candidates:].sum(1, keepdim=True) / p_NV[:, candidates:].sum(1, keepdim=True)
    shared_NV = torch.cat([nodes.value_NV[:, :candidates], tail_N1.expand(-1, VOCABULARY - candidates)], dim=1)
    g_NV = ideal_direction(p_NV, shared_NV)
    reduced, direction = reduce(nodes, candidates, d_NV)
    rates = exact_rates(reduced, torch.cat([nodes.value_NV[:, :candidates], tail_N1], dim=1).numpy())

    norm, inner = ideal_norm(reduced, rates), inner_product(reduced, rates, direction)

    assert np.abs(norm.corrected_N - g_NV.square().sum(dim=-1).numpy()).max() < 1e-12
    assert np.abs(inner.unbiased_N - (g_NV * d_NV).sum(dim=-1).numpy()).max() < 1e-12


def test_what_the_bucket_leaves_out_is_the_covariance_within_the_tail(nodes: Enumerated) -> None:
    """The inner product over the full vocabulary exceeds the bucket's by P_R Cov_R(V, d)."""
    p_NV, candidates = nodes.log_p_NV.exp(), 2
    d_NV = softmax_direction(p_NV, nodes.log_q_NV - nodes.log_p_NV)
    exact_N = (ideal_direction(p_NV, nodes.value_NV) * d_NV).sum(dim=-1)
    weight_NR = p_NV[:, candidates:] / p_NV[:, candidates:].sum(dim=1, keepdim=True)
    value_NR, d_NR = nodes.value_NV[:, candidates:], d_NV[:, candidates:]
    mean_N = (weight_NR * value_NR).sum(dim=1)
    covariance_N = (weight_NR * value_NR * d_NR).sum(dim=1) - mean_N * (weight_NR * d_NR).sum(dim=1)
    reduced, direction = reduce(nodes, candidates, d_NV)
    rates = exact_rates(reduced, torch.cat([nodes.value_NV[:, :candidates], mean_N[:, None]], dim=1).numpy())

    bucket_N = inner_product(reduced, rates, direction).unbiased_N

    expected_N = exact_N - p_NV[:, candidates:].sum(dim=1) * covariance_N
    assert np.abs(bucket_N - expected_N.numpy()).max() < 1e-12
