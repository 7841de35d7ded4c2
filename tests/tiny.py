"""A tiny random GPT-2 in float64 with a tokenizer of single characters, for exact tests."""

import string
from pathlib import Path

import torch
import transformers
from opdscope_serving.models import LoadedModel, tokenizer_fingerprint
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

EOS = "<eos>"
EOS_ID = 0
ALPHABET = f"{string.digits}{string.ascii_lowercase} .,:?!+-*/=()\n"
VOCABULARY_SIZE = 1 + len(ALPHABET)


def tiny_gpt2(seed: int = 0, *, vocabulary_size: int = VOCABULARY_SIZE, n_positions: int = 96) -> GPT2LMHeadModel:
    """Return a model in float64. Its weights are large enough for distributions far from uniform."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=n_positions,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=EOS_ID,
        eos_token_id=EOS_ID,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).double().eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for every character of `ALPHABET`, after the end of text with id 0."""
    vocabulary = {EOS: EOS_ID} | {character: index for index, character in enumerate(ALPHABET, start=1)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=EOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, bos_token=EOS, unk_token=EOS)


def tiny_loaded(model: PreTrainedModel | None = None) -> LoadedModel:
    """Return a model, by default `tiny_gpt2()`, as the loader would return it."""
    model = tiny_gpt2() if model is None else model
    tokenizer = tiny_tokenizer()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        model_id="tiny",
        weights_version="0",
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        vocabulary_size=model.config.vocab_size,
        context_length=model.config.max_position_embeddings,
        eos_token_ids=frozenset({EOS_ID}),
        dtype="float64",
    )


def save_tiny(path: Path, *, seed: int = 0, n_positions: int = 96) -> Path:
    """Write model and tokenizer as a Hugging Face folder that servers can load (dtype float64), and return it."""
    transformers.utils.logging.disable_progress_bar()
    tiny_gpt2(seed, n_positions=n_positions).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
