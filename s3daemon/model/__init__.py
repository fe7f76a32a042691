"""Values that all rooms share: requests, transfers, replies, journal records, verdicts, exposures; and users' files.

Frozen and valid by construction, except those of `exposure`, which are counted up. They do no I/O, but `files/` opens
and checks users' files.
Begin reading with `request`: a `Request` becomes a `Transfer`, which ends in a `record.TransferRecord`; its client gets
a `reply`. `verdict` says what each error means, `exposure` which exposures are late or lack files. `ids` has the second
form of a transfer's id.
"""
