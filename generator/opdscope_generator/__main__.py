"""`opdscope-generator`: serves one model."""

import sys
from collections.abc import Sequence

from opdscope_serving.metrics import ServerMetrics
from opdscope_serving.server import run_server
from opdscope_serving.settings import load_settings

from opdscope_generator.application import GeneratorApplication
from opdscope_generator.settings import GeneratorSettings

_PROG = "opdscope-generator"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop, and return its exit code."""
    settings = load_settings(GeneratorSettings, prog=_PROG, env_prefix="OPDSCOPE_GENERATOR_", argv=argv)

    async def build(metrics: ServerMetrics) -> GeneratorApplication:
        return GeneratorApplication(settings, metrics)

    return run_server(_PROG, settings, build)


if __name__ == "__main__":
    sys.exit(main())
