"""Settings of the scorer."""

from pathlib import Path
from typing import Literal

from opdscope_serving.settings import ServerSettings
from pydantic import Field, field_validator


class ScorerSettings(ServerSettings):
    """Runs diagnoses and streams alignments over gRPC. Without a model it only scores evidence."""

    model: str | None = Field(
        None, description="the student: Hugging Face folder, .gguf file, or package:NAME/FILE in an installed package"
    )
    generators: str = Field("", description="generators that serve the student: HOST:PORT, several with commas between")
    state_dir: Path | None = Field(None, description="folder for the state of runs; needed with a model")
    cache_dir: Path | None = Field(None, description="folder for converted models; by default in the user's cache")
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = Field("float32", description="weights' number format")
    device: str = Field("cpu", description="torch device, for example cpu or cuda:0")
    threads: int = Field(0, ge=0, description="threads that torch computes with; 0 leaves it to torch")
    questions_at_once: int = Field(4, ge=1, description="questions of a run that are worked on at the same time")
    generator_patience_seconds: float = Field(
        600.0, ge=0, description="how long a run waits for a generator that answers before it fails"
    )

    @field_validator("generators")
    @classmethod
    def _check_generators(cls, value: str) -> str:
        for address in _split(value):
            host, colon, port = address.rpartition(":")
            if not (host and colon and port.isdigit() and 0 < int(port) <= 65535):
                raise ValueError("must be HOST:PORT, several with commas between")
        return value

    @property
    def generator_addresses(self) -> list[str]:
        """The generators' addresses."""
        return _split(self.generators)


def _split(addresses: str) -> list[str]:
    return [address for part in addresses.split(",") if (address := part.strip())]
