"""A transfer's id and its UUID stand for each other, and the UUID is one by the letter of RFC 9562."""

import uuid

import pytest

from s3daemon.model.ids import id_of, uuid_of

ID, UUID = "0a4f4b5ad7ef5b43", "0a4f4b5a-d7ef-8000-8000-000000005b43"


@pytest.mark.parametrize("transfer_id", [ID, "0" * 16, "f" * 16])
def test_an_id_has_a_uuid_and_the_uuid_gives_it_back(transfer_id: str) -> None:
    made = uuid.UUID(uuid_of(transfer_id))
    assert (str(made), made.version, made.variant) == (uuid_of(transfer_id), 8, uuid.RFC_4122)
    assert id_of(str(made)) == id_of(str(made).upper()) == transfer_id


@pytest.mark.parametrize(
    "text", [ID, "", "x", UUID[:-1], UUID + "0", UUID.replace("8000", "4000"), UUID.replace("-", ""), f"{UUID}\n"]
)
def test_other_text_is_left_as_it_is_but_for_its_case(text: str) -> None:
    """So an id is taken in either case, as a UUID is."""
    assert id_of(text) == id_of(text.upper()) == text


def test_the_form_of_the_uuid() -> None:
    """It stays: hooks may have written it down."""
    assert uuid_of(ID) == UUID
