"""Single-sample estimators: their expectation and variance by enumeration, and what sharing rollouts does.

Legend: N nodes, V tokens, O outcomes of a rollout.
"""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from opdscope_scorer.objectives import ObjectiveInputs, cross_fitted, parse_objective
from torch import Tensor

GENERATOR = torch.Generator().manual_seed(3)
Z, ZQ = torch.randn(2, 7, dtype=torch.float64, generator=GENERATOR) * 2
INPUTS = ObjectiveInputs(log_p_NV=Z.log_softmax(-1)[None], log_q_NV=ZQ.log_softmax(-1)[None])

# The loss of a sampled token y as a function of log P(y) and log q(y).
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sampled_opd": lambda p, q: -(q - p).detach() * p,
    "vopd": lambda p, q: -((q - p).detach() + kl()) * p,
    "k1": lambda p, q: p - q,
    "k2": lambda p, q: (p - q) ** 2 / 2,
    "k3": lambda p, q: (q - p).exp() - 1 - (q - p),
}


def kl() -> Tensor:
    """KL(P‖q), the baseline of vOPD."""
    p, q = Z.log_softmax(-1), ZQ.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def samples(name: str) -> tuple[Tensor, Tensor]:
    """The direction that each token would give if it were sampled, and the probability of that."""
    rows = []
    for token in range(len(Z)):
        z = Z.clone().requires_grad_()
        loss = LOSSES[name](z.log_softmax(-1)[token], ZQ.log_softmax(-1)[token])
        rows.append(-torch.autograd.grad(loss, z)[0])
    return torch.stack(rows), Z.softmax(-1)


@pytest.mark.parametrize("name", LOSSES)
def test_expectation_and_variance_of_one_sampled_token(name: str) -> None:
    """Both as the sum over all tokens that could have been sampled."""
    row_VV, p_V = samples(name)
    mean_V = p_V @ row_VV
    variance = p_V @ ((row_VV - mean_V) ** 2).sum(-1)

    objective = parse_objective(name)

    torch.testing.assert_close(objective.direction(INPUTS)[0], mean_V, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(objective.variance(INPUTS), variance[None], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("estimator", "divergence"),
    [("sampled_opd", "reverse_kl"), ("vopd", "reverse_kl"), ("k2", "reverse_kl"), ("k3", "forward_kl")],
)
def test_what_an_estimator_really_minimises(estimator: str, divergence: str) -> None:
    """One of the two divergences, whatever its value estimates."""
    one, other = (parse_objective(name).direction(INPUTS) for name in (estimator, divergence))

    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-16)


def test_k1_is_noise_only() -> None:
    """No direction, and a variance that is not zero."""
    objective = parse_objective("k1")

    assert objective.direction(INPUTS).tolist() == [[0.0] * 7]
    assert objective.variance(INPUTS).item() > 0.1


def test_the_baseline_of_vopd_reduces_the_variance_here() -> None:
    """The reason for it; a weight scales a variance by its square, and a mixture has none."""
    opd, vopd, half = (parse_objective(one).variance(INPUTS) for one in ("sampled_opd", "vopd", "0.5*vopd"))

    assert vopd < opd
    assert half.item() == pytest.approx(vopd.item() / 4, rel=1e-14)
    assert parse_objective("vopd + k2").variance(INPUTS) is None


@pytest.mark.parametrize("beta", [-0.7, 0.05, 3.0])
def test_a_teacher_that_knows_the_values_pulls_exactly_along_the_ideal(beta: float) -> None:
    """With q ∝ P exp(V/β) reverse KL is the ideal direction over β; with a negative β it points the other way."""
    log_p = Z.log_softmax(-1)[None]
    value = torch.rand(1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    inputs = ObjectiveInputs(log_p_NV=log_p, log_q_NV=(log_p + value / beta).log_softmax(-1), value_NV=value)

    ideal, distill = (parse_objective(name).direction(inputs) for name in ("ideal", "reverse_kl"))

    torch.testing.assert_close(distill, ideal / beta, rtol=1e-12, atol=1e-15)


# Outcomes of one rollout after each of three tokens: success, length, teacher return, and their probabilities.
OUTCOMES = torch.tensor([[1.0, 1.0, 0.3], [1.0, 4.0, -0.2], [0.0, 2.0, -1.5]], dtype=torch.float64)
PROBABILITIES = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.2, 0.2, 0.6]], dtype=torch.float64)
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)


def directions(name: str, outcome_NVO: Tensor) -> tuple[Tensor, Tensor]:
    """Ideal and distillation direction from the means of some outcomes."""
    success, length, return_ = outcome_NVO.unbind(-1)
    count = len(outcome_NVO)
    inputs = ObjectiveInputs(
        log_p_NV=P.log().expand(count, 3),
        log_q_NV=Q.log().expand(count, 3),
        value_NV=success,
        success_per_token_NV=success / length,
        failure_per_token_NV=(1 - success) / length,
        prompt_success_N=torch.full((count,), 0.55, dtype=torch.float64),
        return_NV=return_,
    )
    return parse_objective("ideal").direction(inputs), parse_objective(name).direction(inputs)


@pytest.mark.parametrize("name", ["grpo", "minillm", "0.3*grpo + minillm"])
def test_cross_fitting_removes_the_bias_of_shared_rollouts(name: str) -> None:
    """Two rollouts a token, every one of the 3^6 results weighted by its probability: no simulation."""
    drawn = torch.tensor(list(product(range(3), repeat=6))).reshape(-1, 2, 3)
    weight_N = PROBABILITIES[torch.arange(3), drawn].prod(-1).prod(-1)
    halves = [directions(name, OUTCOMES[drawn[:, half]]) for half in range(2)]
    (g_one, d_one), (g_two, d_two) = halves
    ideal, distill = expected_directions(name)
    products = (ideal * distill, ideal * ideal, distill * distill)
    truth = torch.stack([one.sum() for one in products])

    fitted = torch.stack(cross_fitted((g_one, g_two), (d_one, d_two))) @ weight_N
    g_N, d_N = (g_one + g_two) / 2, (d_one + d_two) / 2
    shared = torch.stack([(a * b).sum(-1) @ weight_N for a, b in ((g_N, d_N), (g_N, g_N), (d_N, d_N))])

    torch.testing.assert_close(fitted, truth, rtol=1e-12, atol=1e-16)
    assert ((shared - truth) / truth.abs() > 0.05).all()


def expected_directions(name: str) -> tuple[Tensor, Tensor]:
    """Both directions are linear in the outcomes, so their expectation is over one outcome a token."""
    drawn = torch.tensor(list(product(range(3), repeat=3)))
    weight_N = PROBABILITIES[torch.arange(3), drawn].prod(-1)
    ideal, distill = directions(name, OUTCOMES[drawn])
    return weight_N @ ideal, weight_N @ distill
