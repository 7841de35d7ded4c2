import math

import pytest
import torch
from opdscope_scorer.objectives import (
    InvalidObjectiveError,
    ObjectiveInputs,
    UnknownObjectiveError,
    known,
    parse_objective,
    parse_objectives,
)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("reverse_kl", "reverse_kl"),
        (" reverse_kl ( ) ", "reverse_kl"),
        ("gkd_jsd", "gkd_jsd(beta=0.5)"),
        ("gkd_jsd(beta=.30)", "gkd_jsd(beta=0.3)"),
        ("gkd_jsd(beta=1)", "gkd_jsd(beta=1)"),
        ("gkd_jsd(beta=1e-3)", "gkd_jsd(beta=0.001)"),
        ("0.5*reverse_kl + 0.5*forward_kl", "0.5*forward_kl + 0.5*reverse_kl"),
        ("reverse_kl-0.25*gkd_jsd(beta=0.1)", "-0.25*gkd_jsd(beta=0.1) + reverse_kl"),
        ("reverse_kl + forward_kl + reverse_kl", "forward_kl + 2*reverse_kl"),
        ("-reverse_kl", "-reverse_kl"),
    ],
)
def test_an_expression_has_one_canonical_form_that_reads_back(text: str, canonical: str) -> None:
    """Every parameter is written, terms are in order, and the canonical form means the same objective."""
    objective = parse_objective(text)

    assert canonical == objective.canonical
    assert objective == parse_objective(objective.canonical)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the end"),
        ("gkd_jsd(beta=2)", "beta=2 is not within 0 and 1"),
        ("gkd_jsd(beta=-0.1)", "beta=-0.1 is not within 0 and 1"),
        ("gkd_jsd(gamma=1)", "known: beta"),
        ("k2(beta=1)", "known: none"),
        ("gkd_jsd(beta=half)", "'half', not a finite number"),
        ("top_k_jsd(k=1e999)", "inf, not a finite number"),
        ("top_k_jsd(k=1.5)", "not a whole number"),
        ("top_k_jsd(form=unnormalised)", "not one of renormalised, tail_bucket"),
        ("trl_gkd(beta=0.1)", "gkd_jsd(beta=0.5)"),
        ("gkd_jsd(beta=0.1, beta=0.2)", "beta twice"),
        ("gkd_jsd(0.1)", "name of a parameter"),
        ("gkd_jsd(beta=0.1", "expected ')'"),
        ("gkd_jsd(beta=-x)", "expected a number"),
        ("2 reverse_kl", "expected '*'"),
        ("reverse_kl forward_kl", "from 'forward_kl' on"),
        ("0*reverse_kl", "weights are zero"),
        ("reverse_kl - reverse_kl", "weights are zero"),
        ("1e999*reverse_kl", "too large"),
        ("__import__('os').system('true')", "cannot read"),
        ("reverse_kl + " * 1000 + "reverse_kl", "too long"),
    ],
)
def test_a_wrong_expression_is_refused_with_what_is_wrong(text: str, message: str) -> None:
    """The message names what was given or what would be right."""
    with pytest.raises(InvalidObjectiveError) as refused:
        parse_objective(text)

    assert message in str(refused.value)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """Nobody has to look up the catalogue after a typing error."""
    with pytest.raises(UnknownObjectiveError) as refused:
        parse_objective("reverse_lk")

    assert "'reverse_lk'" in str(refused.value)
    assert all(name in str(refused.value) for name in known())


def test_a_list_keeps_equal_objectives_once() -> None:
    """Commas inside of parentheses do not split, and a list of texts reads like one text."""
    text = "reverse_kl, gkd_jsd(beta=0.5), 0.5*reverse_kl + 0.5*forward_kl, gkd_jsd"

    canonical = [objective.canonical for objective in parse_objectives(text)]

    assert canonical == ["reverse_kl", "gkd_jsd(beta=0.5)", "0.5*forward_kl + 0.5*reverse_kl"]
    assert canonical == [objective.canonical for objective in parse_objectives(canonical)]


def test_a_mixture_is_the_weighted_sum_of_directions() -> None:
    """Weights act on directions, whatever the objectives are."""
    log_p, log_q = torch.randn(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    inputs = ObjectiveInputs(log_p_NV=log_p, log_q_NV=log_q)

    mixed = parse_objective("2*reverse_kl - 0.5*forward_kl").direction(inputs)

    reverse, forward = (parse_objective(name).direction(inputs) for name in ("reverse_kl", "forward_kl"))
    torch.testing.assert_close(2 * reverse - 0.5 * forward, mixed, rtol=1e-13, atol=1e-16)
    assert not math.isclose(0.0, mixed.abs().max().item())
