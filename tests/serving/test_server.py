"""The life of a server process, on a real server with a real service."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opdscope.v1 import scorer_pb2, scorer_pb2_grpc

SERVICE = "opdscope.v1.ScorerService"
Status = health_pb2.HealthCheckResponse


@contextlib.contextmanager
def _scorer(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A scorer without a student: the lightest of our servers."""
    command = [sys.executable, "-m", "opdscope_scorer", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server and its address."""
    with _scorer("--listen", "127.0.0.1:0", "--metrics-port", str(_free_port())) as process:
        yield process, _address(process)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("opdscope-scorer listening on 127.0.0.1:"), process.stderr and process.stderr.read()
    return line.split()[-1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _health(channel: grpc.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status


def _wait_ready(channel: grpc.Channel) -> None:
    for _ in range(200):
        if _health(channel, SERVICE) == Status.SERVING:
            return
        time.sleep(0.05)
    pytest.fail("the server does not become ready")


def test_health_tells_process_and_service_apart(server: tuple[object, str]) -> None:
    """The empty name is the process, the service's name its readiness."""
    with grpc.insecure_channel(server[1]) as channel:
        _wait_ready(channel)
        assert _health(channel, "") == Status.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            _health(channel, "opdscope.v1.NoService")
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_service(server: tuple[object, str]) -> None:
    """So that grpcurl works."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(server[1]) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (response,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
    assert SERVICE in {service.name for service in response.list_services_response.service}


def test_calls_that_need_a_student_are_refused_without_one(server: tuple[object, str]) -> None:
    """FAILED_PRECONDITION, with what to do about it."""
    with grpc.insecure_channel(server[1]) as channel:
        stub = scorer_pb2_grpc.ScorerServiceStub(channel)
        for call, request in {
            stub.GetStudent: scorer_pb2.GetStudentRequest(),
            stub.GetRun: scorer_pb2.GetRunRequest(run_id="r"),
            stub.ListRuns: scorer_pb2.ListRunsRequest(),
        }.items():
            with pytest.raises(grpc.RpcError, match="--model") as raised:
                call(request, timeout=10)
            assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_a_port_in_use_is_refused_by_name(server: tuple[object, str]) -> None:
    """Two servers on one port would each get a share of the calls."""
    with _scorer("--listen", server[1], "--metrics-port", "-1") as second:
        _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"opdscope-scorer: cannot listen on {server[1]}: the port is in use" in errors


def test_a_student_without_a_state_directory_is_refused() -> None:
    """What a run pays for must be kept somewhere."""
    with _scorer("--model", "x", "--metrics-port", "-1") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot start: --state-dir is needed with --model" in errors


def test_sigterm_ends_the_process_in_order() -> None:
    """Exit code 0, also while a client is connected."""
    arguments = ("--listen", "127.0.0.1:0", "--metrics-port", "-1", "--grace-seconds", "5")
    with _scorer(*arguments) as process, grpc.insecure_channel(_address(process)) as channel:
        _wait_ready(channel)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_metrics_count_calls_by_method_and_code() -> None:
    """The page is text that Prometheus reads."""
    port = _free_port()
    with _scorer("--listen", "127.0.0.1:0", "--metrics-port", str(port)) as process:
        with grpc.insecure_channel(_address(process)) as channel:
            stub = scorer_pb2_grpc.ScorerServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.GetStudent(scorer_pb2.GetStudentRequest(), timeout=10)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            text = page.read().decode()
    line = f'opdscope_rpcs_total{{code="FAILED_PRECONDITION",method="{SERVICE}/GetStudent"}} 1.0'
    assert line in text
