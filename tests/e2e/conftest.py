"""Real servers with the tiny model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import services
import tiny
from opdscope import Client, RunFile

RUN = """
teachers: [{name: none, context: none}, {name: answer, context: answer}]
objectives: [reverse_kl, forward_kl, gkd_jsd(beta=0.5)]
questions:
  - {id: a, question: "what is 3+4?", answer: "7"}
  - {id: b, question: "and 2?", answer: "2"}
  - {id: c, question: "how many", answer: "5"}
prompt: {template: "{{ question }} {{ privileged | lower }}="}
verifier: number
sampling: {temperature: 0.9, max_new_tokens: 6}
rollouts_per_question: 2
nodes: {selector: entropy, max_nodes: 3}
candidates: {student_top_k: 3, teacher_top_k: 1}
budget: {rollouts_per_candidate: 6}
seed: 11
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model."""
    return tiny.save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> RunFile:
    """A small run."""
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text(RUN)
    return RunFile.load(path)


@pytest.fixture(scope="session")
def generator(tiny_model: Path) -> Iterator[services.Server]:
    """A generator that serves the tiny model."""
    with services.generator(tiny_model) as server:
        yield server


@pytest.fixture(scope="session")
def scorer(
    tiny_model: Path, generator: services.Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Server]:
    """A scorer whose student is the tiny model."""
    with services.scorer(tiny_model, generator.address, tmp_path_factory.mktemp("state")) as server:
        yield server


@pytest.fixture(scope="session")
def client(scorer: services.Server) -> Iterator[Client]:
    """A client of the scorer, which is ready."""
    with services.ready_client(scorer) as connected:
        yield connected
