"""Candidates and tail: exact where the tail is uniform, bounded where it is not.

Legend: N nodes, V tokens, K candidates, S = K + 1 pseudo-tokens, R tokens of the tail.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opdscope_scorer.objectives import InvalidObjectiveError, Need, ObjectiveInputs, known, parse_objective
from opdscope_scorer.objectives.bucket import bucketed, direction_error, numerator, numerator_error
from torch import Tensor

K, R = 4, 12
CANDIDATES = torch.arange(K)[None]
RATIO_OBJECTIVES = ["reverse_kl", "forward_kl", "gkd_jsd(beta=0.3)", "skew_reverse_kl", "skew_forward_kl"]
RATIO_OBJECTIVES += ["total_variation", "alpha_divergence", "f_divergence", "sampled_opd(clip=2)", "k3"]


def node(seed: int, unevenness: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of student and teacher and V; in the tail q/P and V vary as much as `unevenness`."""
    generator = torch.Generator().manual_seed(seed)
    log_p = (2 * torch.randn(1, K + R, dtype=torch.float64, generator=generator)).log_softmax(-1)
    apart = torch.randn(1, K + R, dtype=torch.float64, generator=generator)
    value = torch.rand(1, K + R, dtype=torch.float64, generator=generator)
    apart[:, K:] = apart[:, K] + unevenness * apart[:, K:]
    value[:, K:] = (value[:, K] + unevenness * (value[:, K:] - value[:, K])).clamp(0, 1)
    return log_p, (log_p + apart).log_softmax(-1), value


def full(name: str, log_p: Tensor, log_q: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Ideal and distillation direction over all tokens."""
    inputs = ObjectiveInputs(log_p_NV=log_p, log_q_NV=log_q, value_NV=value)
    return parse_objective("ideal").direction(inputs), parse_objective(name).direction(inputs)


def reduced(name: str, log_p: Tensor, log_q: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and both directions of the pseudo-tokens; V of the bucket is its P-weighted mean."""
    p = log_p.exp()
    tail_value = (p * value)[:, K:].sum(-1, keepdim=True) / p[:, K:].sum(-1, keepdim=True)
    inputs = ObjectiveInputs(
        log_p_NV=bucketed(log_p, CANDIDATES),
        log_q_NV=bucketed(log_q, CANDIDATES),
        value_NV=torch.cat((value[:, :K], tail_value), dim=-1),
        bucketed=True,
    )
    directions = (parse_objective(one).direction(inputs) for one in ("ideal", name))
    return inputs.log_p_NV.exp(), *directions


@pytest.mark.parametrize("name", RATIO_OBJECTIVES)
def test_a_uniform_tail_loses_nothing(name: str) -> None:
    """Directions of candidates, the tail's sum, its share per token, and the inner product are those of all tokens."""
    log_p, log_q, value = node(seed=5, unevenness=0.0)
    ideal, distill = full(name, log_p, log_q, value)
    p, g, d = reduced(name, log_p, log_q, value)
    tail_p = log_p.exp()[:, K:]

    torch.testing.assert_close(d[:, :K], distill[:, :K], rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(d[:, K:] * tail_p / p[:, K:], distill[:, K:], rtol=1e-11, atol=1e-15)
    product = numerator(g, d, p[:, -1], (tail_p**2).sum(-1))
    torch.testing.assert_close(product, (ideal * distill).sum(-1), rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", RATIO_OBJECTIVES)
@given(seed=st.integers(0, 2**32), unevenness=st.floats(0.01, 2))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_an_uneven_tail_loses_less_than_its_bound(name: str, seed: int, unevenness: float) -> None:
    """With the largest deviation of f and of V in the tail the bounds hold, and they are not empty promises."""
    log_p, log_q, value = node(seed, unevenness)
    ideal, distill = full(name, log_p, log_q, value)
    p, g, d = reduced(name, log_p, log_q, value)
    tail_p = log_p.exp()[:, K:]
    f_error = pull_deviation(log_p, d, distill, p)
    value_error = (value[:, K:] - (tail_p * value[:, K:]).sum(-1, keepdim=True) / p[:, -1:]).abs().amax(-1)

    lost = torch.cat((d[:, :K] - distill[:, :K], d[:, K:] - distill[:, K:].sum(-1, keepdim=True)), dim=-1).abs()
    squares = (tail_p**2).sum(-1)
    error = (numerator(g, d, p[:, -1], squares) - (ideal * distill).sum(-1)).abs()
    bound = numerator_error(
        p_NS=p,
        ideal_NS=g,
        distill_NS=d,
        tail_sum_sq_p_N=squares,
        f_error_N=f_error,
        value_error_N=value_error,
    )

    assert (lost <= direction_error(p, f_error) + 1e-14).all()
    assert (error <= bound + 1e-15).all()
    assert bound <= 2 * (p[:, -1] * f_error + squares * value_error * (1 + (d / p).abs().amax(-1) + f_error))


def pull_deviation(log_p: Tensor, d: Tensor, distill: Tensor, p: Tensor) -> Tensor:
    """Max |f_j - f_R| over the tail; f - f̄ = d/P, and a candidate's f is the same in both, which fixes f̄ - f̄."""
    full_pull, bucket_pull = distill / log_p.exp(), d / p
    shift = bucket_pull[:, :1] - full_pull[:, :1]
    return (full_pull[:, K:] + shift - bucket_pull[:, K:]).abs().amax(-1)


@pytest.mark.parametrize("name", known())
def test_objectives_say_whether_a_bucket_is_enough(name: str) -> None:
    """Those that need ranks or logits refuse a bucketed node by name, the others take it."""
    objective = parse_objective(name)
    log = torch.full((1, 5), 0.2, dtype=torch.float64).log()
    extras = ("value_NV", "success_per_token_NV", "failure_per_token_NV", "return_NV")
    inputs = ObjectiveInputs(
        log_p_NV=log,
        log_q_NV=log,
        bucketed=True,
        prompt_success_N=torch.tensor([0.5], dtype=torch.float64),
        **{extra: log.exp() for extra in extras},
    )

    if Need.FULL_VOCABULARY in objective.needs:
        with pytest.raises(InvalidObjectiveError, match=f"{name}.* needs .*full_vocabulary"):
            objective.direction(inputs)
    else:
        assert objective.direction(inputs).abs().max() <= 1e-16
