"""An outbox writes what it took, in order and together, and takes no more than it has room for."""

from __future__ import annotations

import threading

import pytest

from penstock.server.outbox import MOST_AT_ONCE, MOST_WAITING, Outbox


class Slow:
    """Writes when it is let; keeps what it wrote."""

    def __init__(self) -> None:
        self.wrote: list[list[int]] = []
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, items: list[int]) -> None:
        self.begun.release()
        assert self.go.wait(20)
        self.wrote.append(items)


def test_what_waits_is_written_together_and_in_order():
    slow = Slow()
    outbox = Outbox(slow, "test")
    assert outbox.put([(0, 1)]) == 1
    assert slow.begun.acquire(timeout=20)
    assert outbox.put([(1, 1), (2, 1)]) == 2
    assert outbox.put([(3, 1)]) == 1
    slow.go.set()
    outbox.close(20)
    assert slow.wrote == [[0], [1, 2, 3]]
    assert outbox.put([(4, 1)]) == 0


def test_no_more_waits_than_there_is_room_for_and_not_all_at_once():
    slow = Slow()
    outbox = Outbox(slow, "test")
    outbox.put([(0, 1)])
    assert slow.begun.acquire(timeout=20)
    half = MOST_AT_ONCE // 2
    fits = MOST_WAITING // half
    assert outbox.put([(number, half) for number in range(fits + 5)]) == fits
    slow.go.set()
    outbox.close(20)
    assert [len(items) for items in slow.wrote[1:]] == [2] * (fits // 2)


def test_a_failure_is_told_and_the_next_is_written(caplog):
    wrote = []

    def write(items):
        if items == [1]:
            raise OSError("no")
        wrote.extend(items)
        done.set()

    done = threading.Event()
    outbox = Outbox(write, "test")
    outbox.put([(1, 1)])
    while not caplog.records:
        done.wait(0.001)
    outbox.put([(2, 1)])
    assert done.wait(20)
    outbox.close(20)
    assert wrote == [2]


def test_one_that_was_never_used_ends_at_once():
    Outbox(Slow(), "test").close(0)


def test_a_thread_that_could_not_be_started_is_started_later(monkeypatch):
    wrote: list[int] = []
    outbox = Outbox(wrote.extend, "test")

    def refused(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="new thread"):
            outbox.put([(1, 1)])
    assert outbox.put([(2, 1)]) == 1
    outbox.close(20)
    assert wrote == [1, 2]


def test_one_whose_thread_never_started_can_be_closed(monkeypatch):
    outbox = Outbox(print, "test")

    def refused(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="new thread"):
        outbox.put([(1, 1)])
    outbox.close(20)
