"""The bandwidth of uploads: a limit for all together, set by hand or found from what they get delivered.

Begin with `bandwidth`, which has the limit in force and keeps what was found across restarts. `controller` finds it and
is pure; `pacing` shares it among the sockets.
"""
