"""An output that is a terminal, as far as a program looks."""

import io


class Terminal(io.StringIO):
    """It says that it is a terminal."""

    def isatty(self) -> bool:
        return True
