from hypothesis import given
from hypothesis import strategies as st

from penstock.features.breaker import CONSECUTIVE, PROBE_S, WINDOW_CALLS, Breaker


def fail(breaker, now, times=CONSECUTIVE):
    for _ in range(times):
        breaker.record(breaker.admit(now), now, ok=False)


def test_it_opens_after_five_failures_in_a_row_and_not_after_four():
    breaker = Breaker(lambda: 0.5)
    fail(breaker, 10.0, CONSECUTIVE - 1)
    assert not breaker.is_open
    fail(breaker, 10.0, 1)
    assert breaker.is_open
    assert breaker.admit(10.0) is None


def test_a_success_between_failures_starts_the_count_anew():
    breaker = Breaker(lambda: 0.5)
    for now in range(100):  # one call a second, so that the rate says nothing
        breaker.record(breaker.admit(now), now, ok=now % CONSECUTIVE == 0)
    assert not breaker.is_open


def test_it_opens_when_half_of_twenty_calls_in_a_second_fail():
    breaker = Breaker(lambda: 0.5)
    for i in range(WINDOW_CALLS - 1):
        breaker.record(breaker.admit(5.0), 5.0 + i / 100, ok=i % 2 == 0)
    assert not breaker.is_open
    breaker.record(breaker.admit(5.5), 5.5, ok=False)
    assert breaker.is_open


def test_the_rate_forgets_calls_of_an_earlier_second():
    breaker = Breaker(lambda: 0.5)
    for now in range(50):
        breaker.record(breaker.admit(now), now, ok=True)
        breaker.record(breaker.admit(now), now, ok=False)
    assert not breaker.is_open


def test_while_open_one_probe_each_half_second_is_let_through():
    breaker = Breaker(lambda: 0.5)
    fail(breaker, 0.0)
    assert breaker.admit(PROBE_S - 0.01) is None
    assert breaker.admit(PROBE_S) is not None
    assert breaker.admit(PROBE_S) is None
    assert breaker.admit(2 * PROBE_S) is not None


def test_a_probe_that_succeeds_closes_it_and_one_that_fails_does_not():
    breaker = Breaker(lambda: 0.5)
    fail(breaker, 0.0)
    breaker.record(breaker.admit(1.0), 1.0, ok=False)
    assert breaker.is_open
    breaker.record(breaker.admit(2.0), 2.0, ok=True)
    assert not breaker.is_open
    assert breaker.admit(2.0) is not None


def test_a_success_sent_before_it_opened_does_not_close_it():
    breaker = Breaker(lambda: 0.5)
    straggler = breaker.admit(0.0)
    fail(breaker, 0.0)
    breaker.record(straggler, 0.1, ok=True)
    assert breaker.is_open


@given(st.lists(st.tuples(st.floats(0, 0.3), st.booleans()), max_size=200))
def test_while_open_it_never_admits_more_than_one_call_each_half_second(calls):
    breaker, now, admitted = Breaker(lambda: 0.5), 0.0, []
    for step, ok in calls:
        now += step
        was_open = breaker.is_open
        generation = breaker.admit(now)
        if generation is None:
            continue
        if was_open:
            assert not admitted or now - admitted[-1] >= PROBE_S
            admitted.append(now)
        breaker.record(generation, now, ok=ok)
        if not breaker.is_open:
            admitted.clear()
