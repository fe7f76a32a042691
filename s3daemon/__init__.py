"""s3daemon delivers files from data-acquisition hosts to S3 storage across long fat networks, without losing any.

A map of the rooms, from the commands that people use down to the modules that every room imports. A room imports only
rooms of a lower level; the levels are in `tests/release/test_house.py`. Each room's `__init__` says where to begin
reading.

    cli         the command line: `s3daemon [COMMAND]`
    service     composition of the daemon: start, reload, stop
    commands/   check, queue, reload, report, status: what operators run
    http/       the HTTP server: uploads by form, metrics, health, the status page
    ingress/    clients: the line protocol; for HTTP too: sockets, access, waiting clients, refused requests
    control/    the operators' socket, and what it answers: status, queue, exposures
    delivery/   transfers from acceptance to their end: order, attempts, decisions after errors, waiting clients
    s3/         one file to the store: sign, send, verify, in parts where it is large; priming of new connections
    network/    warm connections: opened, kept, paced, watched, chosen by address; which uploads are too slow
    spool/      accepted transfers and the last exposures, durable on disk
    journal     sends records and log entries to journald without delaying a transfer
    systemd/    sockets that systemd passes, notifications to it
    model/      requests, replies, records, verdicts, exposures: values without I/O; and users' files, opened
    config/     the settings, from the environment
    errors, clock, units: what every room may import

Where to find the answers to common questions:

* whether an error is final: `delivery.decision`, from `model.verdict`, which classifies each code
* whether an answer of the store means stored: `s3.answers`; the ETag: `s3.sender`; all conditions: `s3.store`
* whether the endpoint is away or the queue held: `delivery.health`
* the journal's fields and MESSAGE_IDs: `model.record`
* what lies in the state directory, and which module writes each file: `spool.directory`
* which settings need a restart: `config.settings`, the variables with `restart=True`
* whether an upload is too slow: `network.straggler`; it is stopped in `s3.sender`, sent again in `delivery.attempt`
* the bandwidth limit: `network.rate.bandwidth`; how it is found: `network.rate.controller`
* whether an exposure is late, lost or incomplete: `model.exposure`
* priming: `s3.priming.primer`; when a connection is primed: `network.keeper`
* refused requests, counted and logged: `ingress.refusals`
* the answer to `send --wait-for`: `ingress.questions`
* metrics: `http.metrics`, and for those of the present state `control.operations`
* one more protocol for clients: a room beside `http`, see `ingress`

The package never deletes or changes a source file, and never lists or reads a bucket beyond looking up an object or an
upload that it may have stored itself.
"""

__version__ = "1.0.0"
