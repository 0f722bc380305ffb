from __future__ import annotations

import pytest

from swarmlet.api.addresses import host_of, is_unspecified, join_address, split_address
from swarmlet.api.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:4000", ("10.0.0.1", 4000)),
        ("10.0.0.1", ("10.0.0.1", 2377)),
        (" manager-1.example:2377 ", ("manager-1.example", 2377)),
        ("[fd00::1]:2400", ("fd00::1", 2400)),
        ("[fd00::1]", ("fd00::1", 2377)),
        ("fd00::1", ("fd00::1", 2377)),
        ("fe80::1%eth0", ("fe80::1%eth0", 2377)),
    ],
)
def test_an_address_is_split_into_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":2377", "host:", "host:0", "host:65536", "host:x", "host:²", "[fd00::1", "[fd00::1]x", "a b:1"],
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"expected HOST:PORT .* such as 10\.0\.0\.1:2377"):
        split_address(text)


@pytest.mark.parametrize("address", [("10.0.0.1", 1), ("fd00::1", 65535), ("manager", 2377)])
def test_what_was_joined_is_split_again(address: tuple[str, int]) -> None:
    assert split_address(join_address(*address)) == address


@pytest.mark.parametrize(
    ("address", "host"),
    [("10.0.0.1:2377", "10.0.0.1"), ("fd00::1", "fd00::1"), ("[fd00::1]:2377", "fd00::1"), ("", "")],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


def test_addresses_of_all_interfaces_are_told_from_names() -> None:
    assert is_unspecified("0.0.0.0")
    assert is_unspecified("::")
    assert not is_unspecified("127.0.0.1")
    assert not is_unspecified("manager")
