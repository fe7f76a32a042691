"""Priming: new connections carry a megabyte before the first upload needs them, so that their windows are open.

Begin with `primer`, which sends; `kind` says from a store's answer whether that store can be primed.
`network.keeper` decides when a connection is primed.
"""
