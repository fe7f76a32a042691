"""The settings: every variable of the environment, with its unit, default, bounds and reason.

May touch the mapping that it is given, credentials below $CREDENTIALS_DIRECTORY, and the files that variables name.
Begin with `settings`, the table; `values` says how the text of each kind of variable is read.
"""
