"""Which of the directories that systemd lists for a service is the daemon's own. Pure, and cheap to import."""

_SERVICE = "s3daemon"


def own_directory(listed: str) -> str:
    """Return the daemon's own directory among those of STATE_DIRECTORY or RUNTIME_DIRECTORY; "" where none is listed.

    A drop-in may add directories, and systemd lists all of them by name. The unit's own is called as the service is,
    `s3daemon` or `s3daemon@PORT`; where none is called so, the drop-in has replaced it, and the first one counts.
    """
    found = listed.split(":")
    return next((each for each in found if each.rpartition("/")[2].partition("@")[0] == _SERVICE), found[0])
