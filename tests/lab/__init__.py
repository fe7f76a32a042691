"""Real things for tests to run against; nothing here knows a test.

Each module starts one kind of thing, hands out a small object that describes it, and stops it by its process id
at the end of a ``with`` block; where a test process dies instead, the kernel stops what it started. In reading order::

    env         the environment programs are started with; what a missing part is called; free ports
    processes   a program: started, awaited by a line, a port or READY=1, stopped; its output kept
    certs       a certificate authority of our own, and server certificates
    s3          what every S3 server here looks like to a test
    moto        moto: quick, lenient, in memory
    seaweed     SeaweedFS: a second, independent server
    rgw         Ceph's object gateway over HTTP and HTTPS: what production runs
    proxy       a proxy before one of these, which does to each PUT what a test says
    fates       what is done there, beside what `scripted` has verbs for
    nginx       a sink for PUTs that costs as little as a server can: for measuring clients
    scripted    an HTTP server that does to each request what a test says
    flaky       an S3 server in memory that fails now and then, or goes away
    sickfs      a file system that hangs and fails
    soaking     the soak, beside the tests
    targets     the parsers, as a fuzzer calls them
    relay       a TCP relay that can stop, delay and cut
    deploy      the daemon and what it needs, laid out as on an installed system
    records     records of transfers as tests make them up, and their journal entries
    browser     headless Chromium
    box         a Debian system booted by a real systemd
    installed   the service in it, as an operator installed it
    rpm         the package, built and installed there
    daemon      the daemon as a program of this checkout
    sending     the store's side of it, inside a test's own event loop
    schemes     plain HTTP and TLS as a parameter; loopback: pairs of sockets
    records     the records that it wrote

Scripts may use these too: put ``tests`` into PYTHONPATH.
"""
