"""The settings: the environment variables that an operator may set, and the values that they become.

The room reads a mapping that is passed in, systemd credentials and the files that settings name; it writes nothing
and imports no other room but the errors. A bad value cannot become a setting: every fault is raised, at once.
Begin with `settings`, the one table of all variables; `values` has the kinds of values that they take; `envfile`
finds the lines of an environment file that systemd does not read as they are meant; `directories` finds the daemon's
own among the directories that systemd lists.
"""
