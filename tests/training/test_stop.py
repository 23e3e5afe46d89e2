from __future__ import annotations

import os
import signal
import threading

import pytest


@pytest.fixture
def request_to_stop():
    from cap.training.resume.stop import StopRequest

    request = StopRequest()
    with request.listening():
        yield request


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_signal_outside_of_training_stops_at_once(request_to_stop, number, code):
    from cap.base.errors import StoppedError

    with pytest.raises(StoppedError) as stopped:
        send(number)
    assert stopped.value.exit_code == code
    assert not stopped.value.is_clean


def test_signal_in_training_waits_for_a_place_to_stop_at(request_to_stop):
    from cap.base.errors import StoppedError

    request_to_stop.is_deferred = True
    send(signal.SIGTERM)
    with pytest.raises(StoppedError) as stopped:
        request_to_stop.check()
    assert stopped.value.is_clean


def test_signal_that_comes_twice_at_the_same_time_is_one_request(request_to_stop):
    request_to_stop.is_deferred = True
    send(signal.SIGINT)
    send(signal.SIGINT)
    assert request_to_stop.signal == signal.SIGINT


def test_second_request_does_not_wait(request_to_stop, monkeypatch):
    from cap.base.errors import StoppedError
    from cap.training.resume import stop

    monkeypatch.setattr(stop, "_ONE_REQUEST_SECONDS", 0.0)
    request_to_stop.is_deferred = True
    send(signal.SIGTERM)
    with pytest.raises(StoppedError):
        send(signal.SIGTERM)


def test_handlers_are_put_back(request_to_stop):
    from cap.training.resume.stop import StopRequest

    before = signal.getsignal(signal.SIGTERM)
    with StopRequest().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_thread_that_is_sent_no_signals_listens_to_none():
    from cap.training.resume.stop import StopRequest

    before, during = signal.getsignal(signal.SIGTERM), []

    def listen() -> None:
        with StopRequest().listening():
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert during == [before]
