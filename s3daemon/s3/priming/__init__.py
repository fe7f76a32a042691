"""Priming: new connections carry a megabyte before the first upload, which widens their congestion windows.

Begin with `primer`, which sends; `kind` says from a store's answer whether that store can be primed.
`network.keepalive.keeper` decides when a connection is primed.
"""
