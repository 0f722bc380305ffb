from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.fakes import FakeDaemon, serve


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "s.sock")
    server = serve(fake)
    yield fake
    server.stop(grace=None).wait()
