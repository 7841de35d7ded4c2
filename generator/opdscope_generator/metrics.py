"""Metrics of the generator."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_STEP_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class GeneratorMetrics:
    """What the engine does. The engine's thread writes, the metrics page reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register everything in `registry`."""
        prefix = "opdscope_generator"
        self.completions = Counter(f"{prefix}_completions", "Finished samples.", ["finish_reason"], registry=registry)
        self.generated_tokens = Counter(f"{prefix}_generated_tokens", "Sampled tokens.", registry=registry)
        self.prefix_tokens = Counter(
            f"{prefix}_prefix_tokens",
            "Tokens of jobs' prefixes by where they came from.",
            ["source"],
            registry=registry,
        )
        self.scored_positions = Counter(f"{prefix}_scored_positions", "Positions scored.", registry=registry)
        self.rows = Gauge(f"{prefix}_rows_running", "Samples being decoded.", registry=registry)
        self.jobs_waiting = Gauge(f"{prefix}_jobs_waiting", "Rollout jobs with samples to start.", registry=registry)
        self.kv_bytes = Gauge(
            f"{prefix}_kv_bytes", "Memory of keys and values by what holds them.", ["holder"], registry=registry
        )
        self.step_seconds = Histogram(
            f"{prefix}_step_seconds", "Duration of decoding steps.", buckets=_STEP_BUCKETS, registry=registry
        )
        self.healthy = Gauge(f"{prefix}_engine_healthy", "1 while the engine serves jobs.", registry=registry)
