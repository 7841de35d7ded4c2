"""The house's rules: who imports whom, what the wheel holds, that the protos are clean."""

import ast
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "opdscope": ROOT / "client" / "opdscope",
    "opdscope_serving": ROOT / "serving" / "opdscope_serving",
    "opdscope_scorer": ROOT / "scorer" / "opdscope_scorer",
    "opdscope_generator": ROOT / "generator" / "opdscope_generator",
}
# Importer -> what it may import of ours. `opdscope.v1` are the generated messages.
ALLOWED = {
    "opdscope": {"opdscope"},
    "opdscope_serving": {"opdscope_serving", "opdscope.v1"},
    "opdscope_scorer": {"opdscope_scorer", "opdscope_serving", "opdscope.v1"},
    "opdscope_generator": {"opdscope_generator", "opdscope_serving", "opdscope.v1"},
}
HEAVY = {"torch", "transformers", "numpy", "scipy", "sglang"}


def _sources(package: str) -> Iterator[Path]:
    return (path for path in PACKAGES[package].rglob("*.py") if "_pb2" not in path.name)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _allowed(name: str, package: str) -> bool:
    inside = any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[package])
    # `from opdscope.v1 import x` names the module `opdscope.v1`, never `opdscope` alone.
    return inside or name.partition(".")[0] not in PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_whom_they_may(package: str) -> None:
    """Client nothing of ours, serving only messages, scorer and generator never each other."""
    wrong = [(path.name, name) for path in _sources(package) for name in _imports(path) if not _allowed(name, package)]
    assert [] == wrong


def test_every_package_has_sources_to_check() -> None:
    """The rule above is about something."""
    assert all(len(list(_sources(package))) > 3 for package in PACKAGES)


def test_at_most_one_file_imports_sglang() -> None:
    """The engine stays behind its interface."""
    files = {path.name for package in PACKAGES for path in _sources(package) for name in _imports(path)
             if name.partition(".")[0] == "sglang"}  # fmt: skip
    assert files <= {"sglang_engine.py"}


def test_importing_the_client_loads_nothing_heavy() -> None:
    """The SDK must fit beside any trainer, and the command line must answer at once."""
    code = f"import opdscope, opdscope.cli, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_protos_pass_buf_lint() -> None:
    """STANDARD and COMMENTS hold."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf")
    assert buf, "buf is missing: pip install --group dev"
    result = subprocess.run([buf, "lint"], cwd=ROOT / "protos", capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as a user gets it: built from the sdist, in an environment of its own."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_the_four_packages_and_generated_code_and_nothing_else(wheel: Path) -> None:
    """No tests, no protos, no stray top-level module."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert set(PACKAGES) == tops
    assert {"opdscope/v1/scorer_pb2.py", "opdscope/v1/scorer_pb2.pyi", "opdscope/v1/scorer_pb2_grpc.py"} <= set(names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


@pytest.mark.timeout(600)
def test_wheel_installs_into_a_fresh_environment_and_imports(wheel: Path, tmp_path: Path) -> None:
    """The base install is the client, without torch; it imports, and its command answers."""
    venv.create(tmp_path, with_pip=True)
    bin_ = tmp_path / "bin"
    subprocess.run([bin_ / "python", "-m", "pip", "install", "--quiet", wheel], check=True)
    code = "import opdscope, opdscope.v1.scorer_pb2, importlib.util as u; print(u.find_spec('torch'))"
    imported = subprocess.run([bin_ / "python", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    version = subprocess.run([bin_ / "opdscope", "--version"], check=True, capture_output=True, text=True)
    assert imported.stdout.strip() == "None"
    assert version.stdout.startswith("opdscope")
    # The servers' packages are there too, and say what is missing.
    for server in ("opdscope_generator", "opdscope_scorer", "opdscope_serving"):
        assert list(tmp_path.glob(f"lib/python3*/site-packages/{server}/__init__.py"))


@pytest.mark.timeout(600)
def test_wheel_with_servers_imports_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """All four packages import from the wheel; what they depend on is taken from the running environment."""
    venv.create(tmp_path, with_pip=True)
    bin_ = tmp_path / "bin"
    subprocess.run([bin_ / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    ours = next(tmp_path.glob("lib/python3*/site-packages"))
    theirs = Path(pytest.__file__).parents[1]
    code = (
        f"import sys; sys.path.append({str(theirs)!r}); import opdscope, opdscope_serving.server, "
        "opdscope_scorer.__main__, opdscope_generator.__main__ as g; print(g.__file__)"
    )
    # -P and -s: nothing of this checkout and of the user may help.
    result = subprocess.run(
        [bin_ / "python", "-P", "-s", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.stdout.strip() == str(ours / "opdscope_generator" / "__main__.py")
