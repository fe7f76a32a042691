"""Transfers with numbers for names; imported in a tenth of the time that `fakes` takes."""

from s3daemon.model.request import Destination, FileState, Transfer


def transfer(n: int, key: str = "") -> Transfer:
    """Return the n-th transfer, to a destination of its own or to `key`."""
    destination = Destination(
        "rubin-summit", key or f"LSSTCam/20261123/MC_O_20261123_{n:06d}/MC_O_20261123_{n:06d}_R22_S11.fits"
    )
    file = f"/data/20261123/MC_O_20261123_{n:06d}/MC_O_20261123_{n:06d}_R22_S11.fits"
    return Transfer(
        f"{n:016x}",
        file,
        destination,
        (f"MC_O_20261123_{n:06d}",),
        FileState(8_000_000 + n, 1_763_862_735 * 10**9, n, 7),
        n,
    )
