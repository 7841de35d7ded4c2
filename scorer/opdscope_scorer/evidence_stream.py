"""One `ScoreEvidence` stream: collects nodes, and scores them when it is told to."""

from collections.abc import Sequence

from opdscope.v1 import alignment_pb2, scorer_pb2
from opdscope_serving.errors import InvalidRequest

from opdscope_scorer.convert import alignments_message, evidence_node, judgement
from opdscope_scorer.evidence import EvidenceNode, score_evidence
from opdscope_scorer.objectives import BoundObjective, known, parse_objective
from opdscope_scorer.violations import Violations

# Nodes that one set may hold, so that a stream cannot take all memory.
MAX_NODES = 200_000
# Nodes of one response message: under 2 MiB with all columns.
_NODES_PER_MESSAGE = 8_192


class EvidenceStream:
    """State of one stream."""

    def __init__(self, settings: scorer_pb2.EvidenceSettings) -> None:
        """Take the settings of the first message.

        Raises:
            InvalidRequest: They are wrong.
        """
        wrong = Violations()
        self._objectives = _objectives(settings.objectives, wrong)
        self._judgement = judgement(settings.judgement, "settings.judgement", wrong)
        wrong.raise_any()
        self._waiting: list[EvidenceNode] = []
        self._scored = 0

    def add(self, nodes: Sequence[alignment_pb2.EvidenceNode]) -> None:
        """Add nodes to the set.

        Raises:
            InvalidRequest: It would have too many.
        """
        if len(self._waiting) + len(nodes) > MAX_NODES:
            raise InvalidRequest.field("nodes", f"a set has at most {MAX_NODES} nodes; flush earlier")
        self._waiting += map(evidence_node, nodes)

    def flush(self) -> list[scorer_pb2.ScoreEvidenceResponse]:
        """Score the set, and begin a new one."""
        first, nodes = self._scored, self._waiting
        self._scored, self._waiting = first + len(nodes), []
        scored, refusals = score_evidence(nodes, self._objectives, judgement=self._judgement)
        responses = [
            scorer_pb2.ScoreEvidenceResponse(
                refusals=[
                    scorer_pb2.EvidenceRefusal(
                        node_index=first + index, field=refusal.field, description=refusal.description
                    )
                    for index, refusal in refusals
                ]
            )
        ]
        for part in scored:
            for start in range(0, len(part.index_N), _NODES_PER_MESSAGE):
                rows = slice(start, start + _NODES_PER_MESSAGE)
                indices = (first + part.index_N[rows]).tolist()
                message = alignments_message(part.alignments, rows, indices)
                responses.append(scorer_pb2.ScoreEvidenceResponse(alignments=[message]))
        return responses


def _objectives(texts: Sequence[str], wrong: Violations) -> list[BoundObjective]:
    """Return the objectives, or all that need nothing but the two policies."""
    if not texts:
        return [objective.bind() for objective in known().values() if not objective.needs]
    bound: dict[str, BoundObjective] = {}
    for n, text in enumerate(texts):

        def make(text: str = text) -> BoundObjective:
            objective = parse_objective(text)
            objective.require(frozenset())
            return objective

        if objective := wrong.attempt(f"settings.objectives[{n}]", make):
            bound[objective.canonical] = objective
    return list(bound.values())
