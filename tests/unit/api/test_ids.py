from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.api.ids import ID_LENGTH, id_from, is_id, new_id, to_base36


@given(st.integers(0, 2**64))
def test_new_ids_have_the_form_of_ids(seed: int) -> None:
    assert is_id(new_id(random.Random(seed)))


def test_ids_follow_the_generator_and_differ() -> None:
    first, second = random.Random(1), random.Random(1)

    ids = [new_id(first) for _ in range(100)]

    assert ids == [new_id(second) for _ in range(100)]
    assert len(set(ids)) == 100


@given(st.lists(st.text()), st.lists(st.text()))
def test_ids_from_parts_are_the_same_only_for_the_same_parts(one: list[str], other: list[str]) -> None:
    assert is_id(id_from(*one))
    assert (id_from(*one) == id_from(*other)) == (one == other)


def test_parts_do_not_run_into_each_other() -> None:
    assert (
        len(
            {
                id_from("ab", "c"),
                id_from("a", "bc"),
                id_from("abc"),
                id_from("a\0b", "c"),
                id_from("a", "b\0c"),
            }
        )
        == 5
    )


@pytest.mark.parametrize("text", ["", "a" * 24, "a" * 26, "A" * 25, "a" * 24 + "-", "a" * 24 + "é"])
def test_other_texts_are_no_ids(text: str) -> None:
    assert not is_id(text)


@given(st.integers(0, 36**10 - 1))
def test_base_36_reads_back(number: int) -> None:
    assert int(to_base36(number, 10), 36) == number
    assert len(to_base36(number, 10)) == 10


@pytest.mark.parametrize("number", [36**3, -1])
def test_numbers_that_do_not_fit_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="base-36"):
        to_base36(number, 3)


def test_an_id_is_as_long_as_dockers() -> None:
    assert len("9mnpnzenvg8p8tdbtq4wvbkcz") == ID_LENGTH
