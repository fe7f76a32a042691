"""Priming: new connections carry a megabyte before the first upload needs them, so that their windows are open.

Begin with `primer`, which sends; `kind` says what a store's answer means for it, `last_bucket` where it goes.
"""
