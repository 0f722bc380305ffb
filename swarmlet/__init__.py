"""Swarmlet: a container cluster manager. Each subpackage is a room; docs/architecture.md is the map."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("swarmlet")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"
