"""Values that all rooms share: requests, transfers, replies, journal records, verdicts; and the file to be sent.

Frozen and valid by construction. They do no I/O, with one exception: `source` opens and checks users' files, and no
other module touches them.
Begin reading with `request`: a `Request` becomes a `Transfer`, which ends in a `record.TransferRecord`.
"""
