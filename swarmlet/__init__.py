"""Swarmlet: a container cluster manager. Each subpackage is a room; docs/architecture.md is the map."""

import os
from importlib.metadata import PackageNotFoundError, version

# gRPC for Python cannot be told a minimum TLS version. Its TLS 1.3 suites are not on
# this list and always allowed; the one TLS 1.2 suite on it needs an RSA key, and ours
# are ECDSA: so 1.3 is all that is left. Read when grpc is imported, hence here.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES256-GCM-SHA384")

try:
    __version__ = version("swarmlet")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"
