"""s3daemon delivers files from data-acquisition hosts to S3 storage across long fat networks, and never loses one.

A map of the rooms, from what people use down to what everything rests on. A room imports only rooms of a lower level;
the levels are in `tests/release/test_house.py`. Each room's `__init__` says where to begin reading.

    cli         the command line: `s3daemon [COMMAND]`
    service     the daemon put together: start, reload, stop
    commands/   check, queue, reload, report, status: what operators run
    http/       the HTTP server: uploads by form, metrics, health, the status page
    ingress/    clients: listening sockets, who may ask (for HTTP too), the line protocol
    control/    the operators' socket, and what it answers: status, queue, exposures
    delivery/   transfers from acceptance to their end: order, attempts, what follows from an error, who waits
    s3/         one file to the store: sign, send, verify, in parts where it is large
    network/    warm connections: opened, kept, paced, watched, chosen by address
    spool/      accepted transfers on disk: what makes the promise true
    journal     records and log entries to journald, never in the way of a transfer
    systemd/    sockets that systemd passes, notifications to it
    model/      requests, replies, records, verdicts, files: values without I/O (files: opening them)
    config/     the settings, from the environment
    hints       what was found about a store, kept over restarts in files of the state directory
    errors, clock, units: what every room may import

The package never deletes or changes a source file, and never lists or reads a bucket beyond looking up an object or an
upload that it may have stored itself.
"""

__version__ = "1.0.0"
