import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opdscope_scorer.directions import softmax_direction
from opdscope_scorer.policy import entropy_nats, kl_nats, sampling_log_probs


def test_temperature_divides_the_logits() -> None:
    """Without truncation the policy is the softmax of z/τ, in float64."""
    logits_NV = torch.tensor([[1.0, 2.0, -3.0]])

    log_p_NV = sampling_log_probs(logits_NV, temperature=0.5)

    torch.testing.assert_close(log_p_NV, (2 * logits_NV.double()).log_softmax(-1), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.95, 3), (0.96, 4), (1.0, 4)]
)
def test_truncation_keeps_the_token_that_crosses(top_p: float, kept: int) -> None:
    """The nucleus is the smallest set of likeliest tokens whose mass reaches top_p, normalised again."""
    p_NV = torch.tensor([[0.05, 0.5, 0.15, 0.3]], dtype=torch.float64)
    # Masses of 0.5, 0.8 and 0.95 are not exact in float64.
    log_p_NV = sampling_log_probs(p_NV.log(), top_p=top_p - 1e-9 if top_p < 1 else 1.0)

    assert int(log_p_NV.isfinite().sum()) == kept
    assert log_p_NV.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@given(
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=12),
    top_p=st.floats(0.01, 0.999),
    temperature=st.floats(0.1, 3),
)
@settings(max_examples=60, deadline=None)
def test_truncation_keeps_a_smallest_set_of_likeliest_tokens(
    logits: list[float], top_p: float, temperature: float
) -> None:
    """No kept token is less likely than one left out, the kept mass reaches top_p and less would not."""
    full_V = sampling_log_probs(torch.tensor([logits]), temperature=temperature)[0].exp()
    kept_V = sampling_log_probs(torch.tensor([logits]), temperature=temperature, top_p=top_p)[0].isfinite()

    assert full_V[kept_V].min() >= (full_V[~kept_V].max() if (~kept_V).any() else 0)
    assert full_V[kept_V].sum() >= top_p - 1e-12
    assert full_V[kept_V].sum() - full_V[kept_V].min() < top_p


def test_entropy_and_divergence_take_excluded_tokens() -> None:
    """Tokens of probability 0 add nothing, unless the other distribution samples them."""
    p_NV = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.75, 0.0]], dtype=torch.float64)
    q_NV = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64)

    divergence_N = kl_nats(q_NV.log(), p_NV.log())

    assert entropy_nats(q_NV.log())[0].item() == pytest.approx(0.6931471805599453)
    assert divergence_N[0].item() == pytest.approx(0.14384103622589042)
    assert divergence_N[1].item() == float("inf")


def test_softmax_direction_ignores_scores_of_tokens_that_are_never_sampled() -> None:
    """Where P is 0 the direction is 0, even if the score is infinite."""
    p_NV = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)

    d_NV = softmax_direction(p_NV, torch.tensor([[1.0, 3.0, torch.inf]], dtype=torch.float64))

    assert d_NV.tolist() == [[-0.5, 0.5, 0.0]]
