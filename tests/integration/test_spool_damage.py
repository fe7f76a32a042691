"""The spool's file destroyed while the daemon runs: memory is written again, and then not even a crash loses it."""

from pathlib import Path

from lab.daemon import daemon
from lab.flaky import FlakyS3

#: With one row in a page, more pages than SQLite's cache holds (2 MB): some have to be read again.
TRANSFERS = 800


def test_a_destroyed_file_costs_no_transfer(s3: FlakyS3, tmp_path: Path) -> None:
    """The first attempt that fails afterwards finds the damage."""
    (tmp_path / "file").write_bytes(b"content")
    long_path = f"{tmp_path}{'/.' * 1500}/file"
    with daemon(tmp_path / "state", s3.server) as served:

        def accept(key: str) -> None:
            reply = served.extended(long_path, f"alias/bucket/{key}", wait=False)
            assert reply["result"] == "accepted", reply

        s3.refuse()
        for number in range(TRANSFERS):
            accept(str(number))
        spool = served.state_dir / "spool.db"
        with spool.open("r+b") as raw:
            raw.seek(4096)
            raw.write(b"\xa5" * (spool.stat().st_size - 4096))
        served.process.wait_line("the spool was damaged")
        accept("after")
        accept("last")  # durable no earlier than what is restored
        served.kill()
        served.start()
        assert len(served.queue()) == TRANSFERS + 2
        s3.open()
        served.wait_idle()
    assert len(s3.objects) == TRANSFERS + 2
