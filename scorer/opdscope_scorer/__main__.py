"""`opdscope-scorer`: runs diagnoses."""

import sys
from collections.abc import Sequence

from opdscope_serving.metrics import ServerMetrics
from opdscope_serving.server import run_server
from opdscope_serving.settings import load_settings

from opdscope_scorer.application import ScorerApplication
from opdscope_scorer.settings import ScorerSettings

_PROG = "opdscope-scorer"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop, and return its exit code."""
    settings = load_settings(ScorerSettings, prog=_PROG, env_prefix="OPDSCOPE_SCORER_", argv=argv)

    async def build(metrics: ServerMetrics) -> ScorerApplication:
        return ScorerApplication(settings, metrics)

    return run_server(_PROG, settings, build)


if __name__ == "__main__":
    sys.exit(main())
