"""Build hook that generates the protobuf code from protos/."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtobufBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Writes messages, type stubs and service stubs to client/opdscope/v1/ before anything is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Generate, for wheels and editable installs; an sdist brings the protos instead."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        generate(root / "protos", root / "client")


def generate(protos: Path, out: Path) -> None:
    """Generate Python code for every proto file below `protos` into the import root `out`."""
    import grpc_tools  # noqa: PLC0415 - only there while building
    from grpc_tools import protoc  # noqa: PLC0415

    sources = sorted(str(path.relative_to(protos)) for path in protos.glob("opdscope/v1/*.proto"))
    includes = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"--proto_path={protos}",
        f"--proto_path={includes}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed; its messages stand above")
