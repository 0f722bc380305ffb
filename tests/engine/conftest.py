"""The engine of these tests: the one that runs at the default socket, or else one of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.engine import (
    DEFAULT_SOCKET,
    EngineMissing,
    PrivateEngine,
    default_engine_answers,
    make_image,
    start_engine,
)


@pytest.fixture(scope="session")
def private_engine() -> Iterator[PrivateEngine]:
    """An engine that may be killed."""
    try:
        with start_engine(Path(tempfile.mkdtemp(prefix="swl-"))) as engine:
            make_image(engine.url)
            yield engine
    except EngineMissing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def engine_url(request: pytest.FixtureRequest) -> str:
    """Where an engine answers that has the test image."""
    if not default_engine_answers():
        engine: PrivateEngine = request.getfixturevalue("private_engine")
        return engine.url
    url = f"unix://{DEFAULT_SOCKET}"
    try:
        make_image(url)
    except EngineMissing as reason:
        pytest.skip(str(reason))
    return url
