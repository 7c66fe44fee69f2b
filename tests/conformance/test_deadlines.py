"""Deadlines: kept by the server, in every unit, before the model is bothered."""

from __future__ import annotations

import time

import grpc
import pytest

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
INTERNAL = grpc.StatusCode.INTERNAL.value[0]


@pytest.fixture
def busy(gate, serving, calling):
    """A server whose worker stands at the gate with a call of one row, and a caller of it."""

    def start(**settings):
        addresses = serving(**settings)
        caller = calling(addresses)
        gate.shut()
        first = caller.send("double", [[0.0, 0.0]])
        gate.entered()
        return addresses, caller, first

    return start


def test_a_call_whose_deadline_passes_in_the_queue_fails_and_never_runs(busy, gate):
    _, caller, first = busy()
    late = caller.send("double", [[1.0, 1.0], [1.0, 1.0]], timeout=0.2)
    assert late.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    in_time = caller.send("double", [[2.0, 2.0]] * 3)
    gate.open()
    assert caller.answer(in_time).tolist() == [[4, 4]] * 3
    assert caller.answer(first).tolist() == [[0, 0]]
    assert gate.rows == [1, 3]


def test_the_default_deadline_holds_for_callers_who_send_none(busy, gate):
    _, caller, _ = busy(default_deadline_s=0.3)
    began = time.monotonic()
    error = caller.send("double", [[1.0, 1.0]] * 2, timeout=None).exception()
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert 0.25 < time.monotonic() - began < 5
    gate.open()
    assert caller.answer(caller.send("double", [[1.0, 1.0]] * 3)).tolist() == [[2, 2]] * 3
    assert gate.rows == [1, 3]


def test_a_deadline_of_the_caller_may_be_longer_than_the_default(busy, gate):
    _, caller, first = busy(default_deadline_s=0.2)
    longer = caller.send("double", [[1.0, 1.0]] * 2, timeout=20)
    with pytest.raises(grpc.FutureTimeoutError):
        longer.result(timeout=0.6)
    gate.open()
    assert caller.answer(longer).tolist() == [[2, 2]] * 2
    assert caller.answer(first).tolist() == [[0, 0]]


def test_every_unit_of_grpc_timeout_is_understood(busy, gate, http2, infer, body_of):
    """The four that can be short pass on the server's own clock; an hour and a minute do not."""
    addresses, _, _ = busy()
    short = ["1S", "300m", "200000u", "99999999n"]
    long = ["1H", "1M", "99999999H", "99999999S"]
    with http2.connect(addresses.grpc) as peer:
        body = body_of("double", [[1.0, 1.0]])
        began = time.monotonic()
        streams = {t: peer.start_call(infer, body, ("grpc-timeout", t)) for t in short + long}
        for timeout in ("99999999n", "200000u", "300m", "1S"):
            assert peer.answer(streams[timeout]).code == DEADLINE_EXCEEDED, timeout
        assert time.monotonic() - began > 0.9
        assert not any(peer.streams[streams[timeout]].done for timeout in long)
        gate.open()
        assert [peer.answer(streams[timeout]).code for timeout in long] == [0] * len(long)
    assert gate.rows == [1, len(long)]


@pytest.mark.parametrize("method", ["infer", "live"])
def test_a_deadline_of_nothing_has_passed(peer, request, body_of, method):
    body = body_of("double", [[1.0, 1.0]]) if method == "infer" else b""
    assert peer.call(request.getfixturevalue(method), body, ("grpc-timeout", "0S")).code == DEADLINE_EXCEEDED


@pytest.mark.parametrize("method", ["infer", "live"])
@pytest.mark.parametrize("timeout", ["5", "", "-1S", "1s", "S", "1.5S", "fiveS"])
def test_a_timeout_that_is_none_is_refused_and_the_connection_goes_on(peer, request, body_of, method, timeout):
    body = body_of("double", [[1.0, 1.0]]) if method == "infer" else b""
    answer = peer.call(request.getfixturevalue(method), body, ("grpc-timeout", timeout))
    assert answer.code == INTERNAL
    assert "grpc-timeout" in answer.message
    assert peer.call(request.getfixturevalue(method), body).code == 0
