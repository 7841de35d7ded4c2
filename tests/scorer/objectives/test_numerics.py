"""Zeros, ones, ties, low precision, large vocabularies.

Legend: N nodes, V tokens.
"""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from opdscope_scorer.objectives import PRESETS, Need, ObjectiveInputs, known, parse_objective
from torch import Tensor

EVERY = [*known(), *PRESETS, "reverse_kl(floor=-10)", "forward_kl(floor=-10)", "sampled_opd(clip=5)"]
# These losses are infinite where the student plays a token that the teacher excludes, as are these logits.
UNBOUNDED = {"reverse_kl", "top_k_reverse_kl", "sampled_opd", "vopd", "k2", "minillm", "logit_standardised_kd"}
UNBOUNDED |= {"trl_minillm", "trl_distillation", "trl_sdpo", "thinking_machines", "slime_opd"}
# These losses pull on tokens with P = 0.
FORWARD = {"forward_kl", "top_k_forward_kl", "verl_forward_kl_topk"}


def inputs_of(z_NV: Tensor, zq_NV: Tensor, seed: int = 0) -> ObjectiveInputs:
    """Nodes with everything that any objective needs."""
    generator = torch.Generator().manual_seed(seed)
    value, return_, share = torch.rand(3, *z_NV.shape, dtype=torch.float64, generator=generator)
    return ObjectiveInputs(
        log_p_NV=z_NV.log_softmax(-1),
        log_q_NV=zq_NV.log_softmax(-1),
        student_logits_NV=z_NV,
        teacher_logits_NV=zq_NV,
        value_NV=value,
        return_NV=return_,
        success_per_token_NV=value * share,
        failure_per_token_NV=(1 - value) * share,
        prompt_success_N=value[:, 0],
    )


def logits(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher."""
    z, apart = 3 * torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return z, z + apart


@pytest.mark.parametrize("text", EVERY)
def test_directions_sum_to_zero_and_follow_the_vocabulary(text: str) -> None:
    """Adding a constant to all logits changes nothing, and the names of tokens mean nothing."""
    inputs, objective = inputs_of(*logits(6, 40)), parse_objective(text)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    permuted = ObjectiveInputs(
        **{name: one[..., order] if name.endswith("V") else one for name, one in given(inputs).items()}
    )

    direction = objective.direction(inputs)

    assert direction.sum(-1).abs().max() <= 1e-14
    torch.testing.assert_close(objective.direction(permuted), direction[:, order], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("text", EVERY)
def test_a_node_does_not_depend_on_its_neighbours(text: str) -> None:
    """Batches split anywhere."""
    inputs, objective = inputs_of(*logits(5, 30)), parse_objective(text)

    parts = torch.cat([objective.direction(inputs.rows(rows)) for rows in (slice(2), slice(2, 5))])

    torch.testing.assert_close(parts, objective.direction(inputs), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("text", [text for text in EVERY if Need.FULL_LOGITS not in parse_objective(text).needs])
def test_tokens_that_the_student_never_plays_do_not_move(text: str) -> None:
    """A truncated policy has P = 0; where the teacher has q = 0 too, d is 0 and the others are those without it."""
    z, zq = logits(4, 20)
    alone = inputs_of(z, zq)
    padded = ObjectiveInputs(**{name: pad(name, one) for name, one in given(alone).items()})
    objective = parse_objective(text)

    direction = objective.direction(padded)

    assert direction[:, 20:].abs().max() == 0
    torch.testing.assert_close(direction[:, :20], objective.direction(alone), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("text", EVERY)
def test_what_the_teacher_alone_plays_never_gives_half_a_row(text: str) -> None:
    """P = 0 < q: a row is finite and sums to zero, or all of it is NaN."""
    z, zq = logits(8, 20)
    inputs = inputs_of(z.masked_fill(z < 0, -math.inf), zq)
    inputs = ObjectiveInputs(**{**given(inputs), "student_logits_NV": z})

    direction = parse_objective(text).direction(inputs)

    finite = direction.isfinite()
    assert (finite.all(-1) | direction.isnan().all(-1)).all()
    assert direction[finite.all(-1)].sum(-1).abs().sum() <= 1e-13


@pytest.mark.parametrize("text", EVERY)
def test_what_the_teacher_excludes_gives_a_direction_or_a_whole_row_of_nan(text: str) -> None:
    """Q = 0 < P at node 0: losses that are infinite there have no direction, and node 1 is as it is alone."""
    z, zq = logits(2, 20)
    zq[0, 3] = -math.inf
    objective = parse_objective(text)

    direction = objective.direction(inputs_of(z, zq))

    assert direction[0].isnan().all() if text in UNBOUNDED else direction[0].isfinite().all()
    assert direction[1].isfinite().all()


@pytest.mark.parametrize("text", EVERY)
def test_a_certain_student_has_no_direction_left(text: str) -> None:
    """P = 1 at one token: d is 0, but for the losses that give q to tokens with P = 0."""
    z, zq = torch.full((1, 6), -math.inf, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
    z[0, 2] = 0.0
    inputs = ObjectiveInputs(**{**given(inputs_of(z, zq)), "student_logits_NV": zq, "teacher_logits_NV": zq})

    direction = parse_objective(text).direction(inputs)

    if text in FORWARD:
        torch.testing.assert_close(direction, inputs.log_q_NV.exp() - inputs.log_p_NV.exp())
    else:
        assert direction.abs().nan_to_num().max() == 0


@pytest.mark.parametrize("text", EVERY)
def test_what_is_unknown_is_not_taken_for_a_number(text: str) -> None:
    """NaN in a log-probability of node 0 takes the whole row or, where it is not looked at, nothing; never node 1."""
    inputs = inputs_of(*logits(2, 150))
    for name in ("log_p_NV", "log_q_NV"):
        broken = given(inputs)[name].clone()
        broken[0, 3] = math.nan

        direction = parse_objective(text).direction(ObjectiveInputs(**{**given(inputs), name: broken}))

        assert direction[0].isnan().all() or direction[0].isfinite().all()
        assert direction[1].isfinite().all()
        assert text != "gkd_jsd" or direction[0].isnan().all()


def given(inputs: ObjectiveInputs) -> dict[str, Tensor]:
    """The tensors that were given."""
    return {name: one for name, one in vars(inputs).items() if isinstance(one, Tensor)}


def pad(name: str, tensor: Tensor) -> Tensor:
    """Two more tokens that nobody plays."""
    filling = -math.inf if name.startswith("log") else 0.5
    return torch.nn.functional.pad(tensor, (0, 2), value=filling) if name.endswith("V") else tensor


@pytest.mark.parametrize("gap", [5.0, 25.0, 60.0])
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "gkd_jsd"])
def test_a_peaked_policy_keeps_its_digits(name: str, gap: float) -> None:
    """P up to 1 - 1e-26: every entry to 1e-12 of itself, against 60 decimal digits."""
    z = [0.0, -gap, -gap - 1, -gap - 3]
    zq = [0.0, -gap / 2, -gap / 3, -2 * gap]

    exact = decimal_direction(name, z, zq)

    inputs = inputs_of(*(torch.tensor([one], dtype=torch.float64) for one in (z, zq)))
    actual = parse_objective(name).direction(inputs)[0].tolist()
    assert all(abs(one - float(other)) <= 1e-12 * abs(float(other)) for one, other in zip(actual, exact, strict=True))


def decimal_direction(name: str, z: list[float], zq: list[float]) -> list[Decimal]:
    """P (f - f̄) by the formula, in decimal arithmetic."""
    with localcontext(prec=60):
        p, q = (softmax(one) for one in (z, zq))
        f = {
            "reverse_kl": lambda a, b: (b / a).ln(),
            "forward_kl": lambda a, b: b / a,
            "gkd_jsd": lambda a, b: ((a + b) / (2 * a)).ln() / 2,
        }[name]
        pull = [f(a, b) for a, b in zip(p, q, strict=True)]
        mean = sum(a * one for a, one in zip(p, pull, strict=True))
        return [a * (one - mean) for a, one in zip(p, pull, strict=True)]


def softmax(z: list[float]) -> list[Decimal]:
    """Probabilities in the precision of the context."""
    exponentials = [Decimal(one).exp() for one in z]
    return [one / sum(exponentials) for one in exponentials]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", EVERY)
def test_low_precision_is_that_of_the_inputs_only(text: str, dtype: torch.dtype) -> None:
    """All arithmetic is float64: the result is that of the rounded inputs, normalised again."""
    low = {name: one.to(dtype) for name, one in given(inputs_of(*logits(3, 25))).items()}
    high = {name: one.double() for name, one in low.items()}
    for name in ("log_p_NV", "log_q_NV"):
        high[name] = high[name].log_softmax(-1)
    objective = parse_objective(text)

    direction = objective.direction(ObjectiveInputs(**low))

    assert direction.dtype == torch.float64
    torch.testing.assert_close(direction, objective.direction(ObjectiveInputs(**high)), rtol=0, atol=0)


def test_total_variation_decides_its_sign_in_float64() -> None:
    """Probabilities that agree to 15 digits still have a sign, and equal ones have none."""
    log_p = torch.tensor([[0.25, 0.25, 0.25, 0.25]], dtype=torch.float64).log()
    log_q = log_p + torch.tensor([[2e-15, -2e-15, 0.0, 0.0]], dtype=torch.float64)

    direction = parse_objective("total_variation").direction(ObjectiveInputs(log_p_NV=log_p, log_q_NV=log_q))

    assert direction[0].tolist() == [0.125, -0.125, 0.0, 0.0]


@pytest.mark.parametrize("text", EVERY)
def test_a_vocabulary_of_200k(text: str) -> None:
    """No sum loses what makes it zero, and nothing overflows."""
    objective = parse_objective(text)

    direction = objective.direction(inputs_of(*logits(1, 200_000)))

    assert direction.isfinite().all()
    assert direction.sum().abs() <= 1e-13
    assert text == "k1" or direction.abs().max() > 1e-12
