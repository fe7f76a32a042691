"""systemd's side of the daemon: the sockets that it passes, notifications to it, its watchdog and stop signals.

It may touch LISTEN_*, NOTIFY_SOCKET and WATCHDOG_*, which it takes out of the environment so that no child process
speaks for the daemon; descriptors from 3 on; the signals SIGTERM, SIGINT and SIGHUP; and `systemctl list-jobs`.
Begin with `sockets.passed_sockets`, then read `notify.Notifier`; `descriptors` is about their limit.
"""
