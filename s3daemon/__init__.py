"""s3daemon delivers files from data-acquisition hosts to S3 storage over networks with a long delay, and loses none.

A map of the rooms, from the commands that people use down to the modules that every room imports. A room imports only
rooms of a lower level; the levels are in `tests/release/test_house.py`. Each room's `__init__` says where to begin
reading.

    cli         the command line: `s3daemon [COMMAND]`
    service     composition of the daemon: start, reload, stop
    commands/   check, queue, reload, report, status: what operators run
    http/       the HTTP server: uploads by form, metrics, health, the status page
    control/    the operators' socket, and what it answers: status, queue, exposures
    ingress/    clients: the line protocol; for HTTP too: sockets, access, waiting clients, refused requests
    delivery/   transfers from acceptance to their end: order, attempts, decisions after errors, waiting clients
    s3/         one file to the store: sign, send, verify, in parts where it is large; priming of new connections
    network/    warm connections: opened, kept, paced, watched, chosen by address; which uploads are too slow
    spool/      accepted transfers and the last exposures, durable on disk
    journal     sends records and log entries to journald without delaying a transfer
    systemd/    sockets that systemd passes, notifications to it
    model/      requests, replies, records, verdicts, exposures: values without I/O; and users' files, opened
    config/     the settings, from the environment
    errors, clock, units: what every room may import

What happens to a request, in order:

1. `ingress.listener` accepts the connection, `ingress.server` reads a line, `ingress.protocol` makes a request of it,
   and `ingress.access` says whether it is allowed.
2. `delivery.intake` has the file checked and opened (`model.files.source`), gives the transfer to
   `spool.spool`, whose `spool.writer` makes it durable, and at the same time to `delivery.uploader`. The first byte
   may leave before the transfer is durable; the reply never does.
3. `delivery.schedule` says when it is its turn; `delivery.attempt` makes one attempt to store it.
4. `s3.store` chooses one PUT or parts; `s3.sender` takes a connection from `network.pool`, has the request signed
   (`s3.signing.client`), and sends it; `s3.answers` judges the answer. Meanwhile `network.rate.pacing` paces it and
   `network.uploads.straggler` watches it.
5. After an error `delivery.decision` says what follows. At the end `journal` takes the record, `spool` forgets the
   transfer, and the client has its reply, or a later process has the client (`ingress.waiting`).

Words, each in one sense:

* *transfer*: one file that was accepted for one destination, until it is stored or has failed
* *attempt*: one try to store a transfer; *upload*: the body of one attempt, or of one part, on its way
* *multipart upload*: S3's, of a large file; it outlives attempts
* *exposure*: the transfers with one tag, or with one key up to the last slash
* *endpoint*: the URL of the store; *address*, of a *receiver*: one of those that its name has
* *connection*: with the store; a client's is always called so
* *permanent*: an error that ends its transfer, which has then *failed*; *refused*: a request that was not accepted
* *neutral request*: for the list of buckets; it tells whether the keys or one transfer are at fault

Where to find the answers to common questions:

* whether an error is final: `delivery.decision`, from `model.verdict`, which classifies each code
* whether an answer of the store means stored: `s3.answers`; the ETag: `s3.sender`; all conditions: `s3.store`
* whether the endpoint is away or the queue held: `delivery.health.endpoint`; the keys at fault: `delivery.health.keys`
* the journal's fields and MESSAGE_IDs: `model.record`; who fills them in: `delivery.records`
* what lies in the state directory, and which module writes each file: `spool.directory`
* which settings need a restart: `config.settings`, the variables with `restart=True`
* for how long a store keeps idle connections: `network.keepalive.idle_limit`; after which small request:
  `network.keepalive.asking`
* whether an address is disabled or on trial: `network.address`; where a new connection leads: `network.addresses`;
  which addresses the name has: `network.lookup`
* whether an upload is too slow: `network.uploads.straggler`; it is stopped in `s3.sender`, and sent again in
  `delivery.attempt`, or as a part in `s3.parts`
* the bandwidth limit: `network.rate.bandwidth`; how it is found: `network.rate.controller`
* whether an exposure is late, lost or incomplete: `model.exposure`
* priming: `s3.priming.primer`; when a connection is primed: `network.keepalive.keeper`
* refused requests, counted and logged: `ingress.refusals`
* the answer to `send --wait-for`: `ingress.questions`
* metrics: `http.metrics`, and for those of the present state `http.figures`
* one more protocol for clients: a room beside `http`, see `ingress`
* one more error code: `Code` in `errors`, and `model.verdict`; over HTTP `http.upload`; and ERRORS in s3daemon(8),
  which a test compares
* what happens if a background task dies: `Supervisor` in `service` logs why, and the service ends;
  systemd starts it again

The package never deletes or changes a source file, and never lists or reads a bucket beyond looking up an object or an
upload that it may have stored itself.
"""

__version__ = "1.0.0"
