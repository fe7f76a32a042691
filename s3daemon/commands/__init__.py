"""The subcommands of `s3daemon` that run beside the daemon: `queue`, `reload`; and `check/`, `report/`, `status/`.

They ask the daemon through `control.client`, read the journal, or, while no daemon runs, open the spool under its lock.
They write to the terminal, always through `table` where there are columns; nothing here is imported by the daemon.
Each module has `configure(parser)`, which describes its command line, and `main(args, environ, *, out, err)`, which
carries the command out: with what the parser made of the command line, the process's environment, and the files that
take what is shown and what is wrong, a line each. It returns the exit status that `--help` explains, or raises
argparse.ArgumentError where options do not go together, which `cli` makes a usage error of. `arguments` has those that
several commands take. Further arguments are for tests. Begin with `queue`, the smallest one that shows all of this;
`cli` chooses among them.
"""
