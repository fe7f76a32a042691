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
    nginx       a sink for PUTs that costs as little as a server can: for measuring clients
    deploy      the daemon and what it needs, laid out as on an installed system
    box         a Debian system booted by a real systemd

Scripts may use these too: put ``tests`` into PYTHONPATH.
"""
