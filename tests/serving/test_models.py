import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from opdscope_serving.models import ModelNotFoundError, load_model, tokenizer_fingerprint
from tiny import EOS_ID, VOCABULARY_SIZE, save_tiny, tiny_gpt2, tiny_tokenizer


def test_a_folder_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    """Logits, identity and limits are those of the model."""
    loaded = load_model(str(save_tiny(tmp_path / "model")), dtype="float64")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(tiny_gpt2()(ids).logits, loaded.model(ids).logits)
    facts = (loaded.vocabulary_size, loaded.context_length, loaded.eos_token_ids, loaded.dtype)
    assert (VOCABULARY_SIZE, 96, frozenset({EOS_ID}), "float64") == facts
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_dtype_is_what_was_asked_for(tmp_path: Path) -> None:
    """The number format of the file does not decide."""
    loaded = load_model(str(save_tiny(tmp_path)), dtype="float32")
    assert {torch.float32} == {parameter.dtype for parameter in loaded.model.parameters()}
    with pytest.raises(ValueError, match=r"float8.*float64, float32"):
        load_model(str(tmp_path), dtype="float8")


def test_weights_version_follows_the_weights_alone(tmp_path: Path) -> None:
    """Equal weights have equal versions wherever they lie; other weights another one."""
    versions = [
        load_model(str(save_tiny(tmp_path / name, seed=seed))).weights_version
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert versions[0] == versions[1] != versions[2]


def test_fingerprint_is_equal_exactly_for_equal_maps() -> None:
    """An added token, as well as two tokens that changed places, makes another tokenizer."""
    assert tokenizer_fingerprint(tiny_tokenizer()) == tokenizer_fingerprint(tiny_tokenizer())
    added, swapped = tiny_tokenizer(), tiny_tokenizer()
    added.add_tokens(["<new>"])
    state = json.loads(swapped.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {"1": state["model"]["vocab"]["2"], "2": state["model"]["vocab"]["1"]}
    swapped._tokenizer = type(swapped.backend_tokenizer).from_str(json.dumps(state))  # noqa: SLF001
    prints = {tokenizer_fingerprint(tokenizer) for tokenizer in (tiny_tokenizer(), added, swapped)}
    assert len(prints) == 3


def test_a_model_inside_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing the package would fail, loading from it does not."""
    package = tmp_path / "broken_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    save_tiny(package / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_model("package:broken_package/model").model_id == "package:broken_package/model"
    with pytest.raises(ModelNotFoundError, match=r"no model at .*broken_package/other"):
        load_model("package:broken_package/other")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/model", "no model at /nowhere/model; accepted are a Hugging Face folder"),
        ("package:no_such_package/x.gguf", "no installed package 'no_such_package'.*pip install"),
        ("package:os.path/x.gguf", "no installed package"),
        ("{tmp}", "is no model; accepted are"),
        ("{tmp}/text.txt", "is no model; accepted are"),
        ("{tmp}/empty", "holds no .safetensors file"),
        ("{tmp}/broken.gguf", "cannot read .*broken.gguf as a model"),
        ("{tmp}/broken", "cannot read .*broken as a model"),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, source: str, message: str) -> None:
    """The message says what was looked for and what is accepted."""
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "broken.gguf").write_bytes(b"GGUFnonsense")
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelNotFoundError, match=message):
        load_model(source.format(tmp=tmp_path), cache_dir=tmp_path / "cache")


def test_two_processes_convert_a_gguf_file_once(tmp_path: Path) -> None:
    """Generator and scorer start at the same time: one converts, the other waits, and later loads find the result."""
    source, cache = _write_gguf(tmp_path / "tiny.gguf"), tmp_path / "cache"
    script = (
        "import sys; from pathlib import Path; from opdscope_serving.models import load_model; "
        "print(load_model(sys.argv[1], cache_dir=Path(sys.argv[2])).model.model.norm.weight.sum().item())"
    )
    command = [sys.executable, "-c", script, str(source), str(cache)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert lines.count("32.0") == 2
    assert sum("converting_model" in line for line in lines) == 1
    loaded = load_model(str(source), cache_dir=cache)
    assert [loaded.weights_version] == [path.name for path in cache.iterdir() if path.is_dir()]


def _write_gguf(path: Path) -> Path:
    """Write a tiny random Llama with a byte-level tokenizer."""
    rng = np.random.default_rng(0)
    width, inner, heads, tokens = 32, 64, 4, ["<unk>", "<end>", *"abcdefgh", "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    shapes = {
        "token_embd": (len(tokens), width),
        "output": (len(tokens), width),
        **{f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{name}": (inner, width) for name in ("gate", "up")},
        "blk.0.ffn_down": (width, inner),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
