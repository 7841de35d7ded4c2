"""One forward pass of a transformers model with attention of our own.

Shapes: B sequences, T tokens of each, H query heads, G key/value heads, R = H/G, D width of a head, L layers,
V vocabulary. Query head h uses key/value head h // R, as everywhere in transformers.
"""

import inspect
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from opdscope_serving.models import LoadedModel
from torch import Tensor
from transformers import AttentionInterface

_NAME = "opdscope_forked"
# Arguments by which models ask their attention for more than softmax(QK)V over all earlier tokens.
_BEYOND_PLAIN = ("sliding_window", "softcap", "s_aux", "position_bias")
_CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}


class UnsupportedModelError(ValueError):
    """The embedded engine cannot run this model."""


class Attention(Protocol):
    """Attention over tokens of earlier passes too: it keeps their keys and values."""

    def attend(self, layer: int, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scale: float) -> Tensor:
        """Keep the new tokens' keys and values, and return the attention's output, shape (B, T, H, D)."""


@dataclass(frozen=True)
class Geometry:
    """Size of the keys and values of one token."""

    layers: int
    kv_heads: int
    head_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_width * self.dtype.itemsize

    def zeros(self, *sizes: int, tokens: int) -> Tensor:
        """Return storage of shape (2, L, *sizes, G, tokens, D); the first axis is keys, values.

        It is finite from the start, for a weight of 0 does not silence a NaN.
        """
        shape = (2, self.layers, *sizes, self.kv_heads, tokens, self.head_width)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class Forward:
    """Runs a model with an `Attention`. Takes the model over: it cannot be called otherwise afterwards."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Adopt the model.

        Raises:
            UnsupportedModelError: Its attention is not plain attention over all earlier tokens.
        """
        self._model: Any = loaded.model
        self.seconds = 0.0
        """Time spent in the model's forward so far."""
        _refuse_by_config(self._model)
        probe = torch.arange(min(8, loaded.vocabulary_size, loaded.context_length), device=self._model.device)[None]
        with torch.inference_mode():
            expected = self._model(input_ids=probe, use_cache=False).logits
        self._model.set_attn_implementation(_NAME)
        recorder = _Recorder()
        logits = self.logits(probe, torch.arange(probe.shape[1], device=probe.device)[None], recorder)
        # A model may do more than its configuration tells. Then its logits are not those of plain attention.
        tolerance = _CHECK_TOLERANCE.get(logits.dtype, 0.1)
        if not torch.allclose(logits, expected, atol=tolerance * max(1.0, float(expected.abs().max())), rtol=0):
            raise UnsupportedModelError(f"{loaded.model_id}: its attention is not plain attention over earlier tokens")
        self.geometry = recorder.geometry(loaded.model_id)

    def logits(
        self, token_ids_BT: Tensor, positions_BT: Tensor, attention: Attention, keep: Tensor | None = None
    ) -> Tensor:
        """Return logits of shape (B, T, V), or only those at the indices `keep` of the T tokens."""
        started = time.perf_counter()
        with torch.inference_mode():
            output = self._model(
                input_ids=token_ids_BT,
                position_ids=positions_BT,
                use_cache=False,
                logits_to_keep=0 if keep is None else keep,
                opdscope_attention=attention,
            )
        self.seconds += time.perf_counter() - started
        logits: Tensor = output.logits
        return logits


def _attend(
    module: Any,  # noqa: ANN401 - every model has an attention class of its own
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - transformers' signature
    *,
    opdscope_attention: Attention,
    scaling: float | None = None,
    **others: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """Be the attention function that transformers calls in every layer."""
    asked = [name for name in _BEYOND_PLAIN if others.get(name) is not None]
    if asked:
        raise UnsupportedModelError(f"the model's attention uses {', '.join(asked)}, which this engine does not have")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return opdscope_attention.attend(module.layer_idx, query, key, value, scale), None


AttentionInterface.register(_NAME, _attend)


def _refuse_by_config(model: Any) -> None:  # noqa: ANN401 - attributes differ by model
    name = type(model).__name__
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise UnsupportedModelError(
            f"{name} has layers of {', '.join(sorted(kinds))}; only full attention is supported"
        )
    if not model._supports_attention_backend or model.config.is_encoder_decoder:  # noqa: SLF001 - no public name
        raise UnsupportedModelError(f"{name} does not let its attention be replaced, which this engine needs")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModelError(f"{name} cannot restrict its logits to some positions, which this engine needs")


class _Recorder:
    """Plain causal attention that notes the shapes it sees."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[torch.Size, torch.Size, torch.dtype, torch.device]] = {}

    def attend(self, layer: int, query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, scale: float) -> Tensor:
        self._seen[layer] = (key_BGTD.shape, value_BGTD.shape, key_BGTD.dtype, key_BGTD.device)
        mask = causal_mask(query_BHTD.shape[2], key_BGTD.shape[2], query_BHTD.device)
        return masked_attention(query_BHTD, key_BGTD, value_BGTD, mask, scale)

    def geometry(self, model_id: str) -> Geometry:
        if len(set(self._seen.values())) != 1 or sorted(self._seen) != list(range(len(self._seen))):
            raise UnsupportedModelError(f"{model_id}: its layers keep keys of different shapes")
        key, value, dtype, device = self._seen[0]
        if key != value:
            raise UnsupportedModelError(f"{model_id}: its keys and values have different shapes")
        return Geometry(len(self._seen), kv_heads=key[1], head_width=key[3], dtype=dtype, device=device)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return the mask (queries, keys) of what the last `queries` of `keys` tokens may see."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def masked_attention(query_BHTD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor, mask_TS: Tensor, scale: float) -> Tensor:
    """Return attention of T queries over S tokens, shape (B, T, H, D)."""
    output = torch.nn.functional.scaled_dot_product_attention(
        query_BHTD, key_BGSD, value_BGSD, attn_mask=mask_TS, scale=scale, enable_gqa=True
    )
    return output.transpose(1, 2)
