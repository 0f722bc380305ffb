"""No connection between nodes is made with a TLS version before 1.3."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.unit.ca.builders import Cluster
from tests.unit.ca.served import serving

CLUSTER = Cluster()


def client_context(directory: Path, version: ssl.TLSVersion) -> ssl.SSLContext:
    identity = CLUSTER.manager("m2")
    (directory / "cert.pem").write_bytes(identity.certificate_pem)
    (directory / "key.pem").write_bytes(identity.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=identity.root_pem.decode())
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    return context


async def negotiated(address: str, context: ssl.SSLContext) -> str | None:
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        return tls.version()
    finally:
        writer.close()


async def test_a_peer_that_insists_on_tls_1_2_is_refused(tmp_path: Path) -> None:
    async with serving(lambda: CLUSTER.manager("m1")) as served:
        with pytest.raises(OSError):
            await negotiated(served.address, client_context(tmp_path, ssl.TLSVersion.TLSv1_2))


async def test_a_peer_with_tls_1_3_is_served(tmp_path: Path) -> None:
    async with serving(lambda: CLUSTER.manager("m1")) as served:
        version = await negotiated(served.address, client_context(tmp_path, ssl.TLSVersion.TLSv1_3))

    assert version == "TLSv1.3"
