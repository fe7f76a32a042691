"""`s3daemon status`: transfers in flight and their rates, waiting transfers, and the last exposures.

`command` asks the daemon over its control socket and shows what it answers, once or again and again; `view` makes
tables of the answer, without I/O. Both may touch nothing but the control socket and the terminal. Begin with `command`.
"""
