"""The bodies that are being sent: how far each has come, and whether it should go over another connection.

Begin with `progress`, which counts what the peer acknowledged and notices a body that stands still. `straggler` decides
which one is so much slower than others that it should be moved, from the `samples` of each.
"""
