"""Tells, before training, where an on-policy distillation signal helps or hurts, and how sure that is."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opdscope._client import Client
    from opdscope._errors import (
        EvidenceError,
        InvalidRequestError,
        LocalServiceError,
        NotConfiguredError,
        OpdscopeError,
        QueueFullError,
        RunExistsError,
        RunFileError,
        RunNotFoundError,
        ServerError,
        UnavailableError,
        VocabularyMismatchError,
        WeightsChangedError,
    )
    from opdscope._local import local_services
    from opdscope._questions import Question
    from opdscope._runfile import RunFile
    from opdscope._streams import EventStream, EvidenceResult, EvidenceStream
    from opdscope._types import (
        Alignment,
        Candidate,
        Capabilities,
        Correctness,
        EvidenceNode,
        EvidenceRefusal,
        FinishReason,
        IntervalScope,
        NamedInfo,
        ObjectiveInfo,
        ObjectiveParameter,
        PooledAlignment,
        Progress,
        QuestionFinished,
        QuestionsAdded,
        RolloutFinished,
        RolloutScored,
        Run,
        RunEvent,
        RunFinished,
        RunState,
        Spent,
        Status,
        Student,
        Support,
        Tail,
    )

# Modules are imported when a name is first used: trainers import this package beside much else.
_MODULES = {
    "_client": ["Client"],
    "_errors": [
        "EvidenceError",
        "InvalidRequestError",
        "LocalServiceError",
        "NotConfiguredError",
        "OpdscopeError",
        "QueueFullError",
        "RunExistsError",
        "RunFileError",
        "RunNotFoundError",
        "ServerError",
        "UnavailableError",
        "VocabularyMismatchError",
        "WeightsChangedError",
    ],
    "_local": ["local_services"],
    "_questions": ["Question"],
    "_runfile": ["RunFile"],
    "_streams": ["EventStream", "EvidenceResult", "EvidenceStream"],
    "_types": [
        "Alignment",
        "Candidate",
        "Capabilities",
        "Correctness",
        "EvidenceNode",
        "EvidenceRefusal",
        "FinishReason",
        "IntervalScope",
        "NamedInfo",
        "ObjectiveInfo",
        "ObjectiveParameter",
        "PooledAlignment",
        "Progress",
        "QuestionFinished",
        "QuestionsAdded",
        "RolloutFinished",
        "RolloutScored",
        "Run",
        "RunEvent",
        "RunFinished",
        "RunState",
        "Spent",
        "Status",
        "Student",
        "Support",
        "Tail",
    ],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Alignment",
    "Candidate",
    "Capabilities",
    "Client",
    "Correctness",
    "EventStream",
    "EvidenceError",
    "EvidenceNode",
    "EvidenceRefusal",
    "EvidenceResult",
    "EvidenceStream",
    "FinishReason",
    "IntervalScope",
    "InvalidRequestError",
    "LocalServiceError",
    "NamedInfo",
    "NotConfiguredError",
    "ObjectiveInfo",
    "ObjectiveParameter",
    "OpdscopeError",
    "PooledAlignment",
    "Progress",
    "Question",
    "QuestionFinished",
    "QuestionsAdded",
    "QueueFullError",
    "RolloutFinished",
    "RolloutScored",
    "Run",
    "RunEvent",
    "RunExistsError",
    "RunFile",
    "RunFileError",
    "RunFinished",
    "RunNotFoundError",
    "RunState",
    "ServerError",
    "Spent",
    "Status",
    "Student",
    "Support",
    "Tail",
    "UnavailableError",
    "VocabularyMismatchError",
    "WeightsChangedError",
    "local_services",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
