"""The pace of connections: a burst at once, then evenly, never more than promised."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.features.pace import Pace


def test_a_burst_goes_at_once_and_the_rest_evenly():
    pace = Pace(per_s=10, burst=3, chance=lambda: 0.0)
    waits = [pace.wait_s(100.0, 200.0) for _ in range(6)]
    assert [round(wait, 6) for wait in waits] == [0, 0, 0, 0.1, 0.2, 0.3]


def test_who_has_no_time_to_wait_takes_nothing():
    pace = Pace(per_s=10, burst=1, chance=lambda: 0.0)
    assert pace.wait_s(100.0, 100.0) == 0
    assert pace.wait_s(100.0, 100.05) is None
    assert round(pace.wait_s(100.0, 100.15), 6) == 0.1


def test_after_a_quiet_time_the_whole_burst_is_there_again():
    pace = Pace(per_s=10, burst=3)
    for now in (100.0, 200.0):
        assert [pace.wait_s(now, now) for _ in range(4)] == [0, 0, 0, None]


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=200), st.floats(0, 0.999))
def test_never_more_than_the_burst_and_the_rate_together(gaps, chance):
    pace, now, done = Pace(per_s=16, burst=8, chance=lambda: chance), 0.0, []
    for gap in gaps:
        now += gap
        wait = pace.wait_s(now, now + 0.3)
        if wait is not None:
            done.append(now + wait)
    done.sort()
    for i, start in enumerate(done):
        within = [moment for moment in done[i:] if moment <= start + 1.0]
        assert len(within) <= 16 * 1.5 + 8 + 1  # a wait may be half as long again, so two seconds' turns may meet
