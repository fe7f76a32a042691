"""The bandwidth of uploads: a limit for all together, set by hand or found from what they get delivered.

Begin with `bandwidth`, which has the limit in force. `controller` finds it and is pure; `kept` keeps it over restarts;
`pacing` shares it among the sockets.
"""
