"""Priming: new connections carry a megabyte before the first upload, which widens their congestion windows.

Begin with `primer`, which sends; `kind` says from a store's answer whether that store can be primed, `last_bucket`
which bucket the upload is sent to. `network.keeper` decides when a connection is primed.
"""
