"""s3daemon owns the delivery of files from data-acquisition hosts to S3 storage across long fat networks.

The modules in reading order. Data flows down this list; imports point only towards its top, and a test holds them to
that.

What is said
    errors          the exception tree
    kinds           the kinds of journal entries, by MESSAGE_ID, and how urgent each is
    values          how the text of a variable is read: durations, sizes, rates, names
    environ         where that text comes from: the environment, or a systemd credential
    settings        every variable of the environment: unit, default, reason
    request         Destination, Request, Transfer: frozen, valid by construction
    wire            the line protocol without I/O
    record          TransferRecord: one schema for the journal and the reports

What is kept
    retry           what a failed attempt means and when to try again: pure, no clock, no sleep
    health          whether the endpoint is up, away, or the queue held
    spoolparts      the rows of multipart uploads
    spoolrows       a row of the spool, and what may become of it
    spooldb         the SQLite file: schema and statements
    spooldir        the state directory: lock, ballast, what recovery does to each leftover
    spoolrescue     a damaged file: what can be read of it is carried over
    spoolwriter     the thread that writes: one commit for all that waits
    ledger          multipart uploads that a store may still hold, in memory and in the spool
    spool           accepted transfers on disk: the face of those above, and the only one that others use

What is sent
    source          a regular file, opened for sending: checked before, and again after
    tcp             socket options, TCP_INFO, and when an upload is stalled
    body            a file as a request body: sent once, read without blocking
    pacing          the bandwidth, shared among the uploads under way
    progress        how far an attempt has come
    lane            one warm connection
    upload          what was acknowledged since a body began
    receivers       the addresses behind the store's name: which serve, which are left aside
    connections     all lanes, lent to one user at a time
    answers         what went wrong, in our own words
    signing         aiobotocore's client, made to sign and parse
    sending         requests over the lanes: signed there, sent here, watched while they move
    prime           a scratch object over a new connection, so that its window is wide
    keeper          holds the lanes open, warm, and at receivers that serve
    stored          what is known of an object that is in the store
    parts           the parts of a large file: their size, how many at a time
    multipart       a large file to S3 in parts, resumed where an earlier attempt left it
    store           one file to S3, and what the answer means
    endpoint        connections, keys and client of one store, as the settings describe it

What becomes of it
    metrics         records and figures to Prometheus
    sinks           where entries go: journald's own protocol, or text on standard error
    journal         records and log lines to it; never blocks the event loop
    schedule        who goes next
    deferrals       clients that need not wait any longer, in the journal; of a flood, how many
    outcome         what became of a transfer, in the journal's terms
    attempt         one attempt: open, look, send, confirm
    janitor         aborts the multipart uploads that nobody goes on with
    waiters         who waits for a transfer's end, and when they are told not to
    exposures       the last exposures, each to its last object: pure
    uploader        spool -> store -> record: states, attempts, draining
    intake          requests become transfers

Who talks to us
    manager         systemd's side: sockets and stored descriptors, notifications, watchdog, signals
    stopping        whether a stop is for good
    backlog         the clients of a listening socket
    peers           whose connection it is, and whether that user may ask
    server          the listener: bytes <-> wire
    listing         the queue as a table
    control         the private socket: reload, queue, status
    asking          its other end, for the subcommands
    overview        what the status has to say: uploads, exposures, state
    operations      what operators ask there
    httpguard       whose requests the HTTP door takes: no other sites' pages
    httpform        its form without I/O
    httpuploads     `POST /upload`
    httpdoor        its listener: clients, limits, paths
    httppages       its pages for programs: version, health, metrics
    page            the page at `/`
    httpservice     the HTTP door put together
    service         the daemon put together
    queue           `s3daemon queue`
    status_view     the status as tables for people: pure
    status_text     these in characters
    status_rich     these by rich, where it is installed
    status          `s3daemon status`
    envfile         systemd's environment file, read as systemd reads it
    findings        what `check` finds, as lines; the host it looks at
    checks_network  the way to the store: name, addresses, TLS
    checks_store    the store: clock, keys, an object put there
    checks_host     kernel, disk, journal, who may ask
    checks_unit     the service: door, daemon, what the package installed
    check           `s3daemon check`
    report_when     points in time as journalctl takes them
    report_select   which transfers a report is about, each of them once
    report_files    the journal files to read: found, and tried, so that nothing is missed in silence
    report_read     entries out of journal files, or of lines of `journalctl -o json`
    report_stats    the figures: pure
    report_why      where a transfer's time went: pure
    report_text     a report as text
    report_data     a report as JSON or CSV
    report_term     its charts in characters
    report_plot     its charts as a picture
    report          `s3daemon report`
    __main__        the command line

What the package does not do: it never deletes or changes a source file, and never lists or reads a bucket beyond
looking up an object that it may have stored itself.
"""

__version__ = "1.0.0"
