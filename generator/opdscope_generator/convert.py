"""Between protobuf and the engine's types; the only file that knows both. Requests are checked here."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from opdscope.v1 import generator_pb2 as pb
from opdscope_serving.errors import FieldViolation, InvalidRequest

from opdscope_generator.engine import (
    Completion,
    FinishReason,
    Fork,
    ModelInfo,
    PrefixUse,
    RolloutBatch,
    RolloutJob,
    Sampling,
    ScoreJob,
    ScoreSequence,
    SequenceScores,
)

# Limits of one request. They bound what a single caller can make the server hold.
MAX_FORKS = 4096
MAX_SAMPLES = 16384
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256
MAX_SEQUENCES = 1024
MAX_VALUES_PER_SEQUENCE = 2**22
# Sampled tokens after which a response is sent on: about a megabyte.
_TOKENS_PER_RESPONSE = 2**17

_FINISH_REASONS = {
    FinishReason.STOP_TOKEN: pb.FINISH_REASON_STOP_TOKEN,
    FinishReason.STOP_STRING: pb.FINISH_REASON_STOP_STRING,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


class _Check:
    """Collects everything that is wrong with a request."""

    def __init__(self, info: ModelInfo) -> None:
        self._info = info
        self._violations: list[FieldViolation] = []

    def that(self, holds: bool, field: str, description: str) -> None:  # noqa: FBT001 - reads as a sentence
        if not holds:
            self._violations.append(FieldViolation(field, description))

    def tokens(self, token_ids: Sequence[int], field: str) -> None:
        ids = np.asarray(token_ids, dtype=np.int64)
        wrong = np.flatnonzero((ids < 0) | (ids >= self._info.vocabulary_size))
        if len(wrong):
            description = f"must be from 0 to {self._info.vocabulary_size - 1}, not {ids[wrong[0]]}"
            self.that(holds=False, field=f"{field}[{wrong[0]}]", description=description)

    def temperature(self, temperature: float, field: str) -> None:
        self.that(math.isfinite(temperature) and temperature > 0, field, f"must be above 0, not {temperature}")

    def done(self) -> None:
        """Raise what was found."""
        if self._violations:
            raise InvalidRequest(self._violations)


def rollout_job(request: pb.RolloutRequest, info: ModelInfo) -> RolloutJob:
    """Return the job that a request asks for.

    Raises:
        InvalidRequest: With every field that breaks a rule.
    """
    check = _Check(info)
    _check_positions(request, info, check)
    _check_forks(request.forks, check)
    _check_sampling(request.sampling, check)
    check.done()
    return RolloutJob(
        prefix_token_ids=tuple(request.prefix_token_ids),
        prompt_length=request.prompt_length,
        end_position=request.end_position,
        forks=tuple(Fork(tuple(fork.forced_token_ids), tuple(fork.seeds)) for fork in request.forks),
        sampling=Sampling(
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            stop_strings=tuple(request.sampling.stop_strings),
            stop_token_ids=frozenset(request.sampling.stop_token_ids),
        ),
    )


def score_job(request: pb.ScoreRequest, info: ModelInfo) -> ScoreJob:
    """Return the job that a request asks for.

    Raises:
        InvalidRequest: With every field that breaks a rule.
    """
    check = _Check(info)
    count = len(request.sequences)
    check.that(1 <= count <= MAX_SEQUENCES, "sequences", f"must be 1 to {MAX_SEQUENCES}, not {count}")
    largest = info.max_top_k or info.vocabulary_size
    check.that(0 <= request.top_k <= largest, "top_k", f"must be from 0 to {largest}, not {request.top_k}")
    check.temperature(request.temperature, "temperature")
    for index, sequence in enumerate(request.sequences[:MAX_SEQUENCES]):
        _check_sequence(sequence, f"sequences[{index}]", request.top_k, info, check)
    check.done()
    sequences = (
        ScoreSequence(tuple(sequence.token_ids), tuple(sequence.positions), tuple(sequence.token_ids_wanted))
        for sequence in request.sequences
    )
    return ScoreJob(tuple(sequences), request.top_k, request.temperature)


def model_response(info: ModelInfo) -> pb.GetModelResponse:
    """Describe the model."""
    return pb.GetModelResponse(
        model_id=info.model_id,
        weights_version=info.weights_version,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        vocabulary_size=info.vocabulary_size,
        context_length=info.context_length,
        engine=info.engine,
        engine_version=info.engine_version,
        seeded=info.seeded,
        max_top_k=info.max_top_k,
        max_batch_size=info.max_batch_size,
        dtype=info.dtype,
    )


def rollout_responses(batch: RolloutBatch) -> Iterator[pb.RolloutResponse]:
    """Yield a batch in messages of bounded size."""
    response = _first_response(batch.prefix_use)
    tokens = 0
    for completion in batch.completions:
        if tokens >= _TOKENS_PER_RESPONSE:
            yield response
            response, tokens = pb.RolloutResponse(), 0
        response.completions.append(_completion(completion))
        tokens += len(completion.token_ids)
    yield response


def score_response(scores: SequenceScores) -> pb.ScoreResponse:
    """Return the scores of one sequence, row by row."""
    return pb.ScoreResponse(
        sequence_index=scores.sequence_index,
        wanted_log_probs_nats=scores.wanted_log_probs_P_W.ravel(),
        top_token_ids=scores.top_token_ids_P_K.ravel(),
        top_log_probs_nats=scores.top_log_probs_P_K.ravel(),
    )


def _first_response(use: PrefixUse | None) -> pb.RolloutResponse:
    if use is None:
        return pb.RolloutResponse()
    return pb.RolloutResponse(computed_prefix_tokens=use.computed_tokens, cached_prefix_tokens=use.cached_tokens)


def _completion(completion: Completion) -> pb.Completion:
    return pb.Completion(
        fork_index=completion.fork_index,
        sample_index=completion.sample_index,
        token_ids=completion.token_ids,
        log_probs_nats=completion.log_probs,
        finish_reason=_FINISH_REASONS[completion.finish_reason],
    )


def _check_positions(request: pb.RolloutRequest, info: ModelInfo, check: _Check) -> None:
    length, end = len(request.prefix_token_ids), request.end_position
    check.that(length >= 1, "prefix_token_ids", "must hold at least one token")
    check.tokens(request.prefix_token_ids, "prefix_token_ids")
    prompt = request.prompt_length
    check.that(0 <= prompt <= length, "prompt_length", f"must be from 0 to the prefix's {length} tokens, not {prompt}")
    check.that(end >= length, "end_position", f"must be at least the prefix's {length} tokens, not {end}")
    limit = info.context_length
    check.that(end <= limit, "end_position", f"must be at most the model's context length {limit}, not {end}")
    room = length + info.max_new_tokens
    check.that(end <= room, "end_position", f"must be at most {room}: memory for new tokens is limited, not {end}")


def _check_forks(forks: Sequence[pb.Fork], check: _Check) -> None:
    check.that(1 <= len(forks) <= MAX_FORKS, "forks", f"must be 1 to {MAX_FORKS}, not {len(forks)}")
    for index, fork in enumerate(forks[:MAX_FORKS]):
        check.that(bool(fork.seeds), f"forks[{index}].seeds", "must hold at least one seed")
        check.tokens(fork.forced_token_ids, f"forks[{index}].forced_token_ids")
    samples = sum(len(fork.seeds) for fork in forks)
    check.that(samples <= MAX_SAMPLES, "forks", f"must ask for at most {MAX_SAMPLES} samples together, not {samples}")


def _check_sampling(sampling: pb.Sampling, check: _Check) -> None:
    check.temperature(sampling.temperature, "sampling.temperature")
    check.that(0 < sampling.top_p <= 1, "sampling.top_p", f"must be above 0 and at most 1, not {sampling.top_p}")
    stops = sampling.stop_strings
    few = len(stops) <= MAX_STOP_STRINGS
    check.that(few, "sampling.stop_strings", f"must be at most {MAX_STOP_STRINGS}, not {len(stops)}")
    for index, stop in enumerate(stops[:MAX_STOP_STRINGS]):
        field = f"sampling.stop_strings[{index}]"
        check.that(
            1 <= len(stop) <= MAX_STOP_STRING_LENGTH, field, f"must have 1 to {MAX_STOP_STRING_LENGTH} characters"
        )
    check.tokens(sampling.stop_token_ids, "sampling.stop_token_ids")


def _check_sequence(sequence: pb.ScoreSequence, field: str, top_k: int, info: ModelInfo, check: _Check) -> None:
    length = len(sequence.token_ids)
    fits = 1 <= length <= info.context_length
    check.that(fits, f"{field}.token_ids", f"must be 1 to {info.context_length} tokens, not {length}")
    check.tokens(sequence.token_ids, f"{field}.token_ids")
    check.tokens(sequence.token_ids_wanted, f"{field}.token_ids_wanted")
    positions = np.asarray(sequence.positions, dtype=np.int64)
    check.that(len(positions) >= 1, f"{field}.positions", "must hold at least one position")
    inside = bool(np.all((positions >= 1) & (positions <= length)))
    check.that(inside, f"{field}.positions", f"must be from 1 to the sequence's {length} tokens")
    values = len(positions) * (len(sequence.token_ids_wanted) + 2 * top_k)
    small = values <= MAX_VALUES_PER_SEQUENCE
    check.that(small, field, f"must ask for at most {MAX_VALUES_PER_SEQUENCE} values, not {values}")
