"""What the ends of attempts show of the store, so that what would fail is not tried, and people are told.

Begin with `endpoint`: whether it is away or the queue is held, and so how many attempts may start. `buckets` knows
those whose quota is used up, and those that do not answer while others do; `keys` finds out whether a refusal is the
keys' fault; `outages` tells people. What one error means for its transfer is decided in `delivery.decision`.
"""
