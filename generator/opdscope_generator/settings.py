"""Settings of the generator."""

from pathlib import Path
from typing import Literal

from opdscope_serving.settings import ServerSettings
from pydantic import Field


class GeneratorSettings(ServerSettings):
    """Serves rollouts and log-probabilities of one model over gRPC."""

    model: str = Field(description="Hugging Face folder, .gguf file, or package:NAME/FILE in an installed package")
    engine: Literal["embedded"] = Field("embedded", description="inference engine: embedded (transformers)")
    cache_dir: Path | None = Field(None, description="folder for converted models; by default in the user's cache")
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = Field("float32", description="weights' number format")
    device: str = Field("cpu", description="torch device, for example cpu or cuda:0")
    threads: int = Field(0, ge=0, description="threads that torch computes with; 0 leaves it to torch")
    max_rows: int = Field(64, ge=1, le=4096, description="samples that are decoded together at most")
    kv_memory_mb: int = Field(1024, ge=1, description="memory for keys and values of samples under way, in MiB")
    prefix_memory_mb: int = Field(512, ge=1, description="memory for keys and values of prefixes, in MiB")
    max_waiting_jobs: int = Field(256, ge=1, description="calls that run or wait at most; more are refused")
