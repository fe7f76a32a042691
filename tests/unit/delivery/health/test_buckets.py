"""When a bucket that takes no more is tried again, and which buckets are silent."""

from s3daemon.delivery.health.buckets import FullBuckets, SilentBuckets


def test_a_full_bucket_is_tried_at_growing_distance_until_it_takes_something() -> None:
    buckets, now, waits = FullBuckets(), 1000.0, []
    for _ in range(9):
        buckets.refused("full", now)
        waits.append(buckets.earliest("full") - now)
        now = buckets.earliest("full")
        buckets.started("full", now)
        assert buckets.earliest("full") > now, "the others wait for the outcome"
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert buckets.earliest("other") == 0.0
    assert buckets.stored("full")
    assert not buckets.stored("full")
    assert buckets.earliest("full") == 0.0


def test_a_bucket_is_silent_only_while_another_one_takes_objects() -> None:
    """Until it answers: a store that answers nowhere is away, and no bucket's fault."""
    buckets = SilentBuckets()
    buckets.unanswered("silent", 1.0)
    assert "silent" not in buckets, "no bucket has taken anything since"
    buckets.stored("silent", 2.0)
    buckets.unanswered("silent", 1.0)
    assert "silent" not in buckets, "it has taken something itself"
    buckets.stored("other", 3.0)
    buckets.unanswered("silent", 2.5)
    assert [*buckets] == ["silent"]
    assert (buckets.stored("silent", 4.0), [*buckets]) == (True, [])
    assert not buckets.stored("silent", 5.0)
