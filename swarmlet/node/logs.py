"""How the daemon logs: structlog to stderr, key=value or one JSON object a line."""

from __future__ import annotations

import logging
import sys

import structlog

from swarmlet.api.errors import InvalidArgument

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


def configure_logging(level: str, log_format: str) -> None:
    """Raises InvalidArgument for an unknown level or format."""
    if level not in LEVELS:
        raise InvalidArgument(f"unknown log level {level!r}: choose one of {', '.join(LEVELS)}")
    renderers: dict[str, list[structlog.typing.Processor]] = {
        "json": [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()],
        "text": [
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
    }
    if log_format not in renderers:
        raise InvalidArgument(f"unknown log format {log_format!r}: choose text or json")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers[log_format],
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="level=%(levelname)s %(name)s: %(message)s"
    )
