"""Generates swarmlet/api/v1 from proto/; with --check, says whether it is current.

python tools/generate_api.py [--check]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto" / "swarmlet" / "v1"
OUT = ROOT / "swarmlet" / "api" / "v1"
PACKAGE = "swarmlet/api/v1"


def generate(into: Path) -> None:
    """Writes the package swarmlet/api/v1 below `into`."""
    sources = sorted(f"{PACKAGE}/{p.name}" for p in PROTO.glob("*.proto"))
    bin_dir = Path(sys.executable).parent
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PACKAGE}={PROTO}",
        f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--mypy_grpc_out=quiet:{into}",
        *sources,
    ]
    subprocess.run(command, check=True)
    package = into / PACKAGE
    for path in package.glob("*_pb2_grpc.py"):
        # A file without a service has nothing to say.
        if "class " not in path.read_text():
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)
    for path in package.glob("*_pb2_grpc.pyi"):
        if not path.with_suffix(".py").exists():
            path.unlink()
    (package / "__init__.py").write_text(
        '"""Generated from proto/ by tools/generate_api.py; not edited by hand."""\n'
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 when stale")
    if not parser.parse_args().check:
        for old in OUT.glob("*_pb2*"):
            old.unlink()
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        new = {p.name: p.read_bytes() for p in (Path(fresh) / PACKAGE).iterdir()}
    current = {p.name: p.read_bytes() for p in OUT.iterdir() if p.is_file()}
    stale = sorted(name for name in new.keys() | current.keys() if new.get(name) != current.get(name))
    if stale:
        sys.stderr.write(f"generated code is not current, run tools/generate_api.py: {', '.join(stale)}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
