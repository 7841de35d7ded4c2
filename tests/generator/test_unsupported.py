import pytest
import torch
from opdscope_generator.embedded.forward import Forward, UnsupportedModelError
from tiny import VOCABULARY_SIZE, tiny_gpt2, tiny_loaded
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

SIZES = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def _sliding() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))


def _soft_capped() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, layer_types=["full_attention"] * 2))


def _recurrent() -> PreTrainedModel:
    config = MambaConfig(vocab_size=VOCABULARY_SIZE, hidden_size=16, num_hidden_layers=1)
    config.max_position_embeddings = 64
    return MambaForCausalLM(config)


class _Shortsighted(GPT2LMHeadModel):
    """Reads its tokens in another order than given, without saying so in its configuration."""

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **kwargs: object) -> object:
        if kwargs.get("opdscope_attention") is None:
            input_ids = torch.cat([input_ids[:, :1], input_ids[:, 1:].flip(1)], dim=1)
        return super().forward(input_ids, logits_to_keep=logits_to_keep, **kwargs)


def _dishonest() -> PreTrainedModel:
    return _Shortsighted(tiny_gpt2().config).double().eval()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_sliding, "sliding_window"),
        (_soft_capped, "softcap"),
        (_recurrent, "MambaForCausalLM"),
        (_dishonest, "not plain attention"),
    ],
)
def test_models_beyond_plain_attention_are_refused(build: type, message: str) -> None:
    """Wrong samples would be worse than none: the model is refused when it is loaded, with the reason."""
    with pytest.raises(UnsupportedModelError, match=message):
        Forward(tiny_loaded(build()))
