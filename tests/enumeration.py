"""Exact success probabilities of a tiny model, by enumeration of all continuations.

Legend of shape suffixes: N nodes, L tokens of a prefix, V tokens of the vocabulary.
"""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

END = 0


def next_logits(model: GPT2LMHeadModel, prefixes_NL: Tensor) -> Tensor:
    """Logits [N, V] after prefixes of one length."""
    with torch.no_grad():
        logits_NV: Tensor = model(prefixes_NL).logits[:, -1]
    return logits_NV


def exact_values(
    model: GPT2LMHeadModel, prefixes_NL: Tensor, horizon: int, success: Callable[[tuple[int, ...]], bool]
) -> Tensor:
    """Success probabilities [N, V] of every token forced after prefixes of one length.

    Outputs have `horizon` tokens including the forced one, unless token `END` ends them; `success` sees the output.
    """
    (nodes, length), vocabulary = prefixes_NL.shape, model.config.vocab_size
    conditions = torch.tensor(list(product(range(vocabulary), repeat=horizon - 1)))
    repeated = prefixes_NL.repeat_interleave(len(conditions), dim=0)
    with torch.no_grad():
        logits = model(torch.cat([repeated, conditions.repeat(nodes, 1)], dim=1)).logits
    p = logits.softmax(dim=-1).reshape(nodes, *[vocabulary] * (horizon - 1), -1, vocabulary)
    outputs = product(range(vocabulary), repeat=horizon)
    value = torch.tensor([float(success(_until_end(output))) for output in outputs]).double()
    value = value.reshape([vocabulary] * horizon).expand(nodes, *[-1] * horizon)
    for depth in range(horizon - 1, 0, -1):
        # The model is causal: which tokens follow the first `depth` does not matter.
        following = (0,) * (horizon - 1 - depth)
        value = (p[(..., *following, length + depth - 1, slice(None))] * value).sum(dim=-1)
    return value


def _until_end(output: tuple[int, ...]) -> tuple[int, ...]:
    return output[: output.index(END) + 1] if END in output else output
