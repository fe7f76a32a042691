"""Real servers and programs for tests to run against; nothing here depends on a test.

Each module starts one kind of program, hands out a small object that describes it, and stops it by its process id
at the end of a ``with`` block; where a test process dies instead, the kernel stops what it started. In reading order::

    env         the environment programs are started with; the error for a missing part; free ports
    processes   a program: started, waited for by a line, a port or READY=1, stopped; its output kept
    certs       a certificate authority of our own, and server certificates
    s3          what every S3 server here looks like to a test
    moto        moto: quick, lenient, in memory
    seaweed     SeaweedFS: a second, independent server
    rgw         Ceph's object gateway over HTTP and HTTPS: what production runs
    assembly    multipart uploads in memory, for the servers of our own
    accepting   how those accept connections
    scripted    an HTTP server that does to each request what a test says
    proxy       a proxy before a real store, which does to each PUT what a test says
    manual      the error codes that the manual explains
    faults      faults for the proxy, beyond those of `scripted`
    nginx       a sink for PUTs that costs as little as a server can: for measuring clients
    flaky       an S3 server in memory that fails now and then, or goes away
    liar        a store that misbehaves as a plan says, and keeps its history
    counting    a store that counts what it stores, and reads some connections slowly
    stores      the stores that the daemon is tried with, each of which can be restarted
    sickfs      a file system that hangs and fails
    relay       a TCP relay that can stop, delay and cut
    deploy      the daemon and what it needs, laid out as on an installed system
    browser     headless Chromium; `chromium` controls it
    box         a Debian system booted by a real systemd
    installed   the service in it, as an operator installed it
    rpm         the package, built and installed there
    daemon      the daemon as a program of this checkout
    collecting  it, which prints how many objects a garbage collection looks through
    recovering  it, which is slow to recover transfers
    hurrying    it, with limits that take long to pass made short
    worlds      generated plans of one daemon's life; `histories` plays and judges them
    sending     the code that sends to a store, inside a test's own event loop
    schemes     plain HTTP and TLS as a parameter
    keeping     a connection pool with its keeper, inside a test's own event loop
    loopback    pairs of sockets
    serving     a server under test on a Unix socket
    terminal    an output that is a terminal
    control     a control socket with fixed answers
    records     records of transfers, and their journal entries
    statuses    answers to `status`
    load        clients by the thousand
    wan         the long fat network of `emulator`
    targets     the parsers, as a fuzzer calls them
    soaking     the soak as a program beside the tests

Benchmarks and other programs may use these too: put ``tests`` into PYTHONPATH.
"""
