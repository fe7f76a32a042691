"""s3daemon owns the delivery of files from data-acquisition hosts to S3 storage across long fat networks.

The modules in reading order. Data flows down this list; imports point only towards its top, and a test holds them to that.

    errors        the exception tree
    settings      every variable of the environment: unit, default, reason
    request       Destination, Request, Transfer: frozen, valid by construction
    wire          the line protocol without I/O
    retry         what a failed attempt means and when to try again: pure, no clock, no sleep
    spool         accepted transfers on disk, the only owner of that file
    body          a file as a request body: checked, sent once, read without blocking
    connections   the lanes: one warm connection each
    store         one file to S3, signed by aiobotocore; what the answer means
    record        TransferRecord: one schema for the journal and the reports
    journal       records and log lines to the journal, or to standard error; never blocks the event loop
    uploader      spool -> store -> record: order, concurrency, attempts, draining
    server        the listener: bytes <-> wire
    manager       systemd's side: sockets and stored descriptors, notifications, watchdog, signals
    control       the private socket: reload, queue, status
    queue         `s3daemon queue`: what is pending, held and failed
    check         `s3daemon check`: what works and what does not
    __main__      wires it together

What the package does not do: it never deletes or changes a source file, and never lists or reads a bucket beyond looking
up an object that it may have stored itself.
"""

__version__ = "1.0.0"
