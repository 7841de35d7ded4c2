import numpy as np
import pytest
import torch
from opdscope_generator.embedded.sampling import sample, uniforms
from opdscope_generator.engine import Sampling
from plain_rollouts import plain_policy


def _draw(probs: list[float], top_p: float, uniform: torch.Tensor) -> tuple[list[int], list[float]]:
    rows = len(uniform)
    logits = torch.tensor(probs, dtype=torch.float64).log().expand(rows, -1)
    tokens, log_probs = sample(logits, _full(rows, 1.0), _full(rows, top_p), uniform)
    return tokens.tolist(), log_probs.exp().tolist()


def _full(count: int, value: float) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def _grid(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_frequencies_over_a_grid_are_the_probabilities() -> None:
    """Inversion gives every token its share of the unit interval."""
    probs = [0.1, 0.0, 0.25, 0.65]
    tokens, _ = _draw(probs, 1.0, _grid(1000))
    assert pytest.approx(probs, abs=1e-3) == (np.bincount(tokens, minlength=4) / 1000).tolist()


def test_top_p_keeps_the_smallest_set_with_the_mass() -> None:
    """The kept tokens are normalised, and their probabilities are what is returned."""
    tokens, probs = _draw([0.05, 0.5, 0.15, 0.3], 0.75, _grid(80))
    assert {token: tokens.count(token) for token in set(tokens)} == {1: 50, 3: 30}
    assert {token: round(prob, 12) for token, prob in zip(tokens, probs, strict=True)} == {1: 0.625, 3: 0.375}


def test_of_equal_tokens_the_nucleus_keeps_the_first() -> None:
    """Which of equal tokens is kept is part of the policy: the scorer must be able to say the same."""
    tokens, _ = _draw([0.2, 0.2, 0.4, 0.2], 0.7, _grid(50))
    assert {token: tokens.count(token) for token in set(tokens)} == {0: 12, 1: 13, 2: 25}


def test_the_nucleus_of_equal_tokens_may_be_wide() -> None:
    """Among 1,000 equal tokens, the first 300 have the mass 0.3."""
    tokens, _ = _draw([1e-3] * 1000, 0.2995, _grid(600))
    assert list(range(300)) == sorted(set(tokens))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(uniform: float) -> None:
    """Neither rounding nor a leading or trailing zero yields a token of probability 0."""
    tokens, _ = _draw([0.0, 0.3, 0.7, 0.0], 1.0, torch.tensor([uniform], dtype=torch.float64))
    assert tokens[0] in {1, 2}


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_wide_nucleus_equals_sorting_the_whole_vocabulary(top_p: float) -> None:
    """Rows whose nucleus has few and very many of 3,000 tokens get what a full sort gives them, each its own."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.tensor([0.1, 1.0, 6.0], dtype=torch.float64)
    logits = torch.randn(3, 3000, generator=generator, dtype=torch.float64) * spread[:, None]
    uniform = _grid(3)
    tokens, log_probs = sample(logits, _full(3, 0.8), _full(3, top_p), uniform)
    for row in range(3):
        policy = plain_policy(logits[row].numpy(), Sampling(temperature=0.8, top_p=top_p))
        assert int(np.searchsorted(np.cumsum(policy), uniform[row].item(), side="right")) == tokens[row].item()
        assert np.log(policy[tokens[row]]) == pytest.approx(log_probs[row].item(), abs=1e-9)


def test_rows_do_not_influence_each_other() -> None:
    """A row draws the same alone and among rows with other temperatures and nuclei."""
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    temperature = torch.tensor([0.5, 1.0, 1.5, 1.0], dtype=torch.float64)
    top_p = torch.tensor([1.0, 0.4, 0.9, 1.0], dtype=torch.float64)
    together, _ = sample(logits, temperature, top_p, _grid(4))
    alone = [
        sample(logits[i : i + 1], temperature[i : i + 1], top_p[i : i + 1], _grid(4)[i : i + 1])[0] for i in range(4)
    ]
    assert torch.cat(alone).tolist() == together.tolist()


def test_uniforms_depend_on_seed_and_position_alone() -> None:
    """A later end adds numbers and changes none; neighbouring seeds share nothing."""
    assert uniforms(7, 20).tolist() == uniforms(7, 50)[:20].tolist()
    assert not set(uniforms(7, 50)) & set(uniforms(8, 50))
