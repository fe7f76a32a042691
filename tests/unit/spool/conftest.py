"""What tests of the spool share."""

import sqlite3

import pytest


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """The connections that the spool opens during a test, in order: to ask SQLite what is true of the open one."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def recording(*args, **options):  # type: ignore[no-untyped-def]
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", recording)
    return opened
