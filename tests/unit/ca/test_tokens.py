"""Join tokens: Docker's format, and nothing shown of them when they are wrong."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from swarmlet.api import ids, pb
from swarmlet.api.errors import InvalidArgument
from swarmlet.ca import tokens

DIGEST = ids.to_base36(2**255 + 12345, 50)
BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"

digests = st.integers(0, 2**256 - 1).map(lambda n: ids.to_base36(n, 50))


def a_token(seed: int = 1) -> str:
    return tokens.generate(DIGEST, random.Random(seed))


@given(digests, st.integers())
def test_every_generated_token_is_dockers_and_reads_back(digest: str, seed: int) -> None:
    token = tokens.generate(digest, random.Random(seed))

    prefix, version, shown_digest, secret = token.split("-")
    assert (prefix, version, shown_digest, len(secret)) == ("SWMTKN", "1", digest, 25)
    assert tokens.parse(token) == tokens.JoinToken(digest, secret)


def test_a_token_made_by_docker_is_read() -> None:
    token = "SWMTKN-1-1h8aps2yszaiqmz2l3oc5392pgk8e49qhx2aj3nyv0ui0hez2a-6qmn92w6bu3jdvnglku58u11a"

    parsed = tokens.parse(f"  {token}\n")

    assert parsed.digest == "1h8aps2yszaiqmz2l3oc5392pgk8e49qhx2aj3nyv0ui0hez2a"
    assert parsed.secret == "6qmn92w6bu3jdvnglku58u11a"


def test_generate_refuses_what_is_no_digest() -> None:
    with pytest.raises(ValueError, match="not the digest"):
        tokens.generate("z" * 50, random.Random(1))


@given(st.text())
def test_any_other_text_is_refused_as_an_invalid_argument(text: str) -> None:
    with pytest.raises(InvalidArgument):
        tokens.parse(text)


@given(st.integers(0, len(a_token()) - 1), st.sampled_from(BASE36 + "-A _é"), st.booleans())
def test_damaged_token_is_refused_or_another_one_and_never_shown(
    position: int, character: str, is_inserted: bool
) -> None:
    token = a_token()
    damaged = token[:position] + character + token[position + (not is_inserted) :]
    assume(damaged.strip() != token)

    try:
        parsed = tokens.parse(damaged)
    except InvalidArgument as error:
        secret = token.rpartition("-")[2]
        assert secret[:8] not in str(error)
        assert secret[-8:] not in str(error)
    else:
        assert f"SWMTKN-1-{parsed.digest}-{parsed.secret}" == damaged.strip()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", 'does not start with "SWMTKN-1-"'),
        ("SWMTKN", "it has 1 parts"),
        (a_token().replace("SWMTKN-1", "SWMTKN-2-0"), "only version 1"),
        (a_token().rpartition("-")[0], "it has 3 parts"),
        (a_token()[:-1], "fourth part has 24 characters, 25 expected"),
        (a_token().replace("SWMTKN-1-", "SWMTKN-1-0"), "third part has 51 characters, 50 expected"),
        (a_token()[:-1] + "!", "fourth part is damaged"),
        (a_token()[:-25] + "z" * 25, "fourth part is damaged"),
    ],
)
def test_refusal_says_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        tokens.parse(text)

    assert "invalid join token" in str(refused.value)
    assert reason in str(refused.value)


def test_secret_is_not_in_the_repr() -> None:
    parsed = tokens.parse(a_token())

    assert parsed.secret not in repr(parsed)


def test_token_gives_the_role_that_it_was_made_for() -> None:
    held = pb.JoinTokens(worker=a_token(1), manager=a_token(2))

    assert tokens.role_for(a_token(1), held) == pb.NODE_ROLE_WORKER
    assert tokens.role_for(a_token(2), held) == pb.NODE_ROLE_MANAGER
    assert tokens.role_for(a_token(3), held) is None


@given(st.text(), st.text(alphabet=BASE36 + "-é"))
def test_no_text_but_the_token_itself_gives_a_role(text: str, worker: str) -> None:
    role = tokens.role_for(text, pb.JoinTokens(worker=worker, manager=a_token(2)))

    assert role in (None, pb.NODE_ROLE_WORKER)
    assert (role == pb.NODE_ROLE_WORKER) == (bool(worker) and text.strip() == worker)


def test_cluster_without_tokens_lets_nobody_in() -> None:
    assert tokens.role_for("", pb.JoinTokens()) is None
