"""Objectives that depend on what follows, on a tiny model whose every completion is known.

Legend: N prefixes, V tokens, C completions, T tokens of a completion, G completions of a group.
"""

from dataclasses import dataclass
from itertools import pairwise, product

import pytest
import torch
from opdscope_scorer.objectives import ObjectiveInputs, parse_objective
from opdscope_scorer.objectives.minillm import teacher_return
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY, END, HORIZON, TAU = 4, 3, 4, 0.8


@dataclass(frozen=True)
class Tree:
    """All prefixes and completions of one prompt, with the logits of student and teacher at each prefix."""

    z_NV: Tensor
    zq_NV: Tensor
    node_CT: Tensor
    token_CT: Tensor
    length_C: Tensor
    reward_C: Tensor

    def log_probs(self, z_NV: Tensor) -> Tensor:
        """Log-probability of each token of each completion, 0 after its end."""
        log_CT = (z_NV / TAU).log_softmax(-1)[self.node_CT, self.token_CT]
        return torch.where(self.inside_CT, log_CT, 0.0)

    @property
    def inside_CT(self) -> Tensor:
        """Which entries are tokens."""
        return torch.arange(HORIZON) < self.length_C[:, None]

    @property
    def probability_C(self) -> Tensor:
        """Of each completion under the student."""
        return self.log_probs(self.z_NV).sum(-1).exp()

    def expected(self, value_CT: Tensor) -> Tensor:
        """E[value at the token | prefix, token], [N, V]."""
        shape = self.z_NV.shape
        weight_CT = self.probability_C[:, None] * self.inside_CT
        index = (self.node_CT, self.token_CT)
        total_NV = torch.zeros(shape, dtype=torch.float64).index_put(index, weight_CT * value_CT, accumulate=True)
        return total_NV / torch.zeros(shape, dtype=torch.float64).index_put(index, weight_CT, accumulate=True)

    def directions(self, loss: Tensor, z_NV: Tensor) -> Tensor:
        """-τ ∂loss/∂z of each prefix, per visit of the prefix."""
        weight_CT = (self.probability_C[:, None] * self.inside_CT).flatten()
        visits_N = torch.zeros(len(z_NV), dtype=torch.float64).index_add(0, self.node_CT.flatten(), weight_CT)
        (gradient_NV,) = torch.autograd.grad(loss, z_NV)
        return -TAU * gradient_NV / visits_N[:, None]

    def inputs(self, **statistics: Tensor) -> ObjectiveInputs:
        """The prefixes as nodes."""
        log_p_NV, log_q_NV = ((z / TAU).log_softmax(-1) for z in (self.z_NV, self.zq_NV))
        return ObjectiveInputs(log_p_NV=log_p_NV, log_q_NV=log_q_NV, temperature=TAU, **statistics)


@pytest.fixture(scope="module")
def tree() -> Tree:
    """Two random GPT-2 of one layer in float64; a completion ends with token 3 or after four tokens."""
    prefixes = [p for n in range(HORIZON) for p in product(range(END), repeat=n)]
    completions = [(*p, END) for p in prefixes] + [(*p, t) for p in prefixes[-27:] for t in range(END)]
    node_of = {prefix: node for node, prefix in enumerate(prefixes)}
    nodes = [[node_of[one[:t]] if t < len(one) else 0 for t in range(HORIZON)] for one in completions]
    tokens = [[*one, *[0] * (HORIZON - len(one))] for one in completions]
    generator = torch.Generator().manual_seed(7)
    return Tree(
        z_NV=logits(prefixes, seed=1),
        zq_NV=logits(prefixes, seed=2),
        node_CT=torch.tensor(nodes),
        token_CT=torch.tensor(tokens),
        length_C=torch.tensor([len(one) for one in completions]),
        reward_C=(torch.rand(len(completions), generator=generator) < 0.4).double(),
    )


def logits(prefixes: list[tuple[int, ...]], seed: int) -> Tensor:
    """Next-token logits after a prompt of one token and each prefix."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=8, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6)
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        return torch.stack([model(torch.tensor([[END, *prefix]])).logits[0, -1] for prefix in prefixes])


def test_completions_are_all_of_them(tree: Tree) -> None:
    """Probabilities sum to 1, and both rewards occur, in the shortest and in longer completions."""
    assert tree.probability_C.sum().item() == pytest.approx(1, abs=1e-14)
    assert {(one, two) for one, two in pairwise(tree.reward_C.tolist())} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize(("name", "size"), [("dr_grpo", 3), ("grpo", 2), ("grpo", 3)])
def test_group_relative_policy_gradients(tree: Tree, name: str, size: int) -> None:
    """The loss of every group of completions, weighted by its probability, differentiated at every prefix."""
    z_NV = tree.z_NV.clone().requires_grad_()
    loss_C = -tree.log_probs(z_NV).sum(-1) / (tree.length_C if name == "grpo" else 1)
    rewards_G = torch.cartesian_prod(*[tree.reward_C] * size)
    probability = torch.cartesian_prod(*[tree.probability_C] * size).prod(-1)
    advantages_G = rewards_G - rewards_G.mean(-1, keepdim=True)
    if name == "grpo":
        advantages_G /= rewards_G.std(-1, keepdim=True) + 1e-4
    losses_G = torch.cartesian_prod(*[loss_C] * size)
    loss = (probability * (advantages_G * losses_G).mean(-1)).sum()

    actual = parse_objective(f"{name}(group_size={size})").direction(tree.inputs(**statistics(tree)))

    expected = tree.directions(loss, z_NV)
    assert (expected - actual).abs().max() <= 1e-9 * expected.abs().max()


def test_dr_grpo_is_the_ideal_direction_and_grpo_is_not(tree: Tree) -> None:
    """Up to 1 - 1/G, which turns nothing; length normalisation turns it where the length is still open."""
    inputs = tree.inputs(**statistics(tree))
    ideal, dr_grpo, grpo = (parse_objective(name).direction(inputs) for name in ("ideal", "dr_grpo", "grpo"))
    cosine = torch.nn.functional.cosine_similarity(ideal, grpo)

    torch.testing.assert_close(dr_grpo, ideal * 7 / 8, rtol=1e-14, atol=0)
    assert (cosine[:-27] < 1 - 1e-6).double().mean() > 0.9
    assert cosine[:-27].min() < 0.5


def statistics(tree: Tree) -> dict[str, Tensor]:
    """What rollouts estimate, exactly."""
    reward_C1, length_C1 = tree.reward_C[:, None], tree.length_C[:, None]
    return {
        "value_NV": tree.expected(reward_C1.expand(-1, HORIZON)),
        "success_per_token_NV": tree.expected((reward_C1 / length_C1).expand(-1, HORIZON)),
        "failure_per_token_NV": tree.expected(((1 - reward_C1) / length_C1).expand(-1, HORIZON)),
        "prompt_success_N": (tree.probability_C * tree.reward_C).sum().expand(len(tree.z_NV)),
    }


def test_minillm_without_length_normalisation_is_the_gradient_of_the_sequence_kl(tree: Tree) -> None:
    """Nothing is stopped or decomposed: KL of whole completions, differentiated at every prefix."""
    z_NV = tree.z_NV.clone().requires_grad_()
    log_p_C, log_q_C = tree.log_probs(z_NV).sum(-1), tree.log_probs(tree.zq_NV).sum(-1)

    expected = tree.directions((log_p_C.exp() * (log_p_C - log_q_C)).sum(), z_NV)

    assert_minillm(tree, expected, normalise=False)


def test_minillm_with_length_normalisation(tree: Tree) -> None:
    """The single step exactly, the rest as a stopped reward that is averaged over its own length."""
    z_NV = tree.z_NV.clone().requires_grad_()
    log_p_NV, log_q_NV = (z_NV / TAU).log_softmax(-1), (tree.zq_NV / TAU).log_softmax(-1)
    single_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
    rest_CT = -returns(tree, normalise=True) * tree.log_probs(z_NV)
    loss_CT = torch.where(tree.inside_CT, single_N[tree.node_CT] + rest_CT, 0.0)

    expected = tree.directions((tree.probability_C[:, None] * loss_CT).sum(), z_NV)

    assert_minillm(tree, expected, normalise=True)


def assert_minillm(tree: Tree, expected: Tensor, *, normalise: bool) -> None:
    """Same at every prefix, and different from reverse KL wherever something follows."""
    inputs = tree.inputs(return_NV=tree.expected(returns(tree, normalise=normalise)))

    actual = parse_objective("minillm").direction(inputs)

    assert (expected - actual).abs().max() <= 1e-9 * expected.abs().max()
    apart = (actual - parse_objective("reverse_kl").direction(inputs)).abs().amax(-1)
    assert (apart[:-27] > 1e-3).all()
    assert (apart[-27:] < 1e-14).all()


def returns(tree: Tree, *, normalise: bool) -> Tensor:
    """The teacher return after each token of each completion [C, T]."""
    log_ratio_CT = tree.log_probs(tree.zq_NV) - tree.log_probs(tree.z_NV)
    rows = [
        [teacher_return(row[t + 1 : length], normalise=normalise) for t in range(HORIZON)]
        for row, length in zip(log_ratio_CT, tree.length_C.tolist(), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)
