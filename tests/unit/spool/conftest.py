"""What tests of the spool share."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """The connections that the spool opens during a test, in order: to ask SQLite what is true of the open one."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def recording(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", recording)
    return opened


@pytest.fixture
def damage(connections: list[sqlite3.Connection]) -> Callable[[Path], None]:
    """Overwrites all but the first page of the file that is open."""

    def overwrite(path: Path) -> None:
        connections[-1].execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connections[-1].execute("PRAGMA shrink_memory")  # or the pages would be served from memory
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))

    return overwrite
