"""Alignments as a Parquet table: one row for every node, teacher and objective."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from opdscope._types import Alignment, RolloutFinished, RolloutScored

COLUMNS: dict[str, tuple[str, str]] = {
    "question_id": ("string", "question the node belongs to"),
    "rollout_id": ("string", "rollout the node belongs to"),
    "position": ("int32", "number of output tokens before the node"),
    "teacher": ("string", "name of the teacher"),
    "objective": ("string", "the objective, with all its parameters"),
    "plug_in": ("float64", "cosine with the raw success rates put in"),
    "alignment": ("float64", "cosine corrected for the noise of the success rates"),
    "low": ("float64", "lower end of the interval of the alignment"),
    "high": ("float64", "upper end of the interval of the alignment"),
    "status": ("string", "helps, hurts, neutral or undetermined"),
    "teacher_advantage": ("float64", "sum over tokens of (q - P) V"),
    "numerator": ("float64", "estimate of the inner product of ideal and distillation direction"),
    "numerator_se": ("float64", "standard error of the numerator"),
    "ideal_norm_sq": ("float64", "corrected squared norm of the ideal direction; may be below 0"),
    "distill_norm": ("float64", "norm of the distillation direction"),
    "p_heterogeneity": ("float64", "level at which one success probability of all candidates is refused"),
    "coverage": ("float64", "P of the candidates together"),
    "teacher_coverage": ("float64", "q of the candidates together"),
    "candidate_cosine": ("float64", "plug-in cosine over the candidates alone"),
    "support": ("string", "full_vocabulary, bucketed or candidates"),
    "entropy_nats": ("float64", "the student's entropy at the node"),
    "divergence_nats": ("float64", "KL(q || P) at the node"),
    "taken_token_id": ("int32", "token that the rollout really took"),
    "token_text": ("string", "its text"),
    "depth": ("float64", "position divided by the number of output tokens, in [0, 1)"),
    "rollout_success": ("bool_", "whether the rollout ended in a verified success"),
}
"""Name of a column to its type and meaning; null says that a value does not exist."""

_ROWS_PER_GROUP = 20_000


class AlignmentTable:
    """Writes rows in groups, so that memory stays bounded. A context manager."""

    def __init__(self, path: Path, teachers: list[str]) -> None:
        self._path = path
        self._teachers = teachers
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        import pyarrow as pa  # noqa: PLC0415 - heavy, and only this needs it
        from pyarrow import parquet  # noqa: PLC0415

        fields = [
            pa.field(name, getattr(pa, kind)(), metadata={"description": text})
            for name, (kind, text) in COLUMNS.items()
        ]
        self._table_from_rows = pa.Table.from_pylist
        self._schema = pa.schema(fields)
        self._writer = parquet.ParquetWriter(self._path, self._schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write_group()
        self._writer.close()

    def add(self, scored: RolloutScored, rollout: RolloutFinished | None) -> None:
        """Add the rows of a scored rollout; the rollout itself brings texts and depths."""
        self._rows += [self._row(row, scored, rollout) for row in scored.alignments]
        if len(self._rows) >= _ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        if self._rows:
            self._writer.write_table(self._table_from_rows(self._rows, schema=self._schema))
            self._rows = []

    def _row(self, row: Alignment, scored: RolloutScored, rollout: RolloutFinished | None) -> dict[str, Any]:
        node = scored.nodes[row.node_index]
        texts = rollout.token_texts if rollout else ()
        divergences = dict(zip(self._teachers, scored.divergence_nats, strict=False)).get(row.teacher)
        return {
            **{name: getattr(row, name) for name in COLUMNS if hasattr(row, name)},
            "entropy_nats": scored.entropy_nats[row.node_index],
            "divergence_nats": divergences[row.node_index] if divergences else None,
            "taken_token_id": node.taken_token_id,
            "token_text": texts[row.position] if row.position < len(texts) else None,
            "depth": row.position / len(texts) if texts else None,
            "rollout_success": node.rollout_success,
        }
