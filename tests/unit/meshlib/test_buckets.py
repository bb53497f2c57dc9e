from meshlib.buckets import Buckets, Rate


def test_a_burst_then_a_steady_rate() -> None:
    buckets = Buckets(Rate(3, 0.5))
    assert [buckets.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b", 0.0)
    assert not buckets.take("a", 1.9)
    assert buckets.take("a", 2.0)
    assert not buckets.take("a", 2.0)
    assert [buckets.take("a", 1000.0) for _ in range(4)] == [True, True, True, False]


def test_time_that_stands_still_or_goes_back_gives_nothing() -> None:
    buckets = Buckets(Rate(1, 1))
    assert buckets.take("a", 10.0)
    assert not buckets.take("a", 5.0)


def test_the_least_recent_key_is_forgotten() -> None:
    buckets = Buckets(Rate(1, 0.001), limit=2)
    assert buckets.take("a", 0.0)
    assert buckets.take("b", 0.0)
    assert not buckets.take("a", 0.0)
    assert buckets.take("c", 0.0)
    assert not buckets.take("a", 0.0)
    assert buckets.take("b", 0.0), "forgotten, so full again"
