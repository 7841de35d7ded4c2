import weakref

import pytest
import torch
from opdscope_scorer.objectives import (
    InvalidObjectiveError,
    ObjectiveInputs,
    evaluate,
    parse_objective,
    parse_objectives,
)
from torch import Tensor

TEXT = "reverse_kl, forward_kl, gkd_jsd, top_k_jsd(k=4), top_k_reverse_kl(k=4, form=unnormalised), k3, vopd"


def inputs_of(nodes: int, vocabulary: int, dtype: torch.dtype = torch.float64) -> ObjectiveInputs:
    """Random policies."""
    logits = 3 * torch.randn(2, nodes, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_p, log_q = logits.log_softmax(-1).to(dtype)
    return ObjectiveInputs(log_p_NV=log_p, log_q_NV=log_q)


@pytest.mark.parametrize("max_bytes", [1, 20_000, 1 << 28])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_gives_what_single_calls_give(max_bytes: int, dtype: torch.dtype) -> None:
    """Whatever the size of a chunk, every objective comes for every node, once."""
    inputs, objectives = inputs_of(7, 30, dtype), parse_objectives(TEXT)
    whole = {one.canonical: torch.full((7, 30), torch.nan, dtype=torch.float64) for one in objectives}

    for one in evaluate(objectives, inputs, max_bytes=max_bytes):
        assert whole[one.objective.canonical][one.rows].isnan().all()
        whole[one.objective.canonical][one.rows] = one.direction_NV

    for objective in objectives:
        torch.testing.assert_close(whole[objective.canonical], objective.direction(inputs), rtol=1e-12, atol=1e-16)


def test_one_direction_and_one_chunk_are_alive_at_a_time() -> None:
    """A consumer that reduces each direction at once holds no other, and a chunk leaves with its last objective."""
    directions: list[weakref.ref[Tensor]] = []
    chunks: dict[int, weakref.ref[ObjectiveInputs]] = {}

    for one in evaluate(parse_objectives(TEXT), inputs_of(6, 30), max_bytes=20_000):
        directions.append(weakref.ref(one.direction_NV))
        chunks[one.rows.start] = weakref.ref(one.inputs)
        del one
        assert sum(ref() is not None for ref in directions) <= 1
        assert sum(ref() is not None for ref in chunks.values()) <= 1

    assert len(chunks) > 1


def test_what_the_inputs_lack_is_refused_before_anything_is_computed() -> None:
    """The call itself raises, not the first step of the iteration."""
    with pytest.raises(InvalidObjectiveError, match=r"minillm needs teacher_returns"):
        evaluate([parse_objective("reverse_kl"), parse_objective("minillm")], inputs_of(2, 5))


def test_a_mixture_names_every_need_of_its_terms() -> None:
    """Needs add up."""
    with pytest.raises(InvalidObjectiveError, match=r"needs full_logits, values, which"):
        parse_objective("0.1*ideal + temperature_kd").direction(inputs_of(2, 5))
