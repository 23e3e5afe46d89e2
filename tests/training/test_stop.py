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


CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGUSR1": 138, "SIGUSR2": 140}


@pytest.mark.parametrize(("number", "code"), [(signal.Signals[name], code) for name, code in CODES.items()], ids=CODES)
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


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("waits", [False, True], ids=["nothing", "a handler"])
def test_who_waited_for_a_schedulers_warning_is_told_after_the_run(name, waits):
    from cap.base.errors import StoppedError
    from cap.training.resume.stop import StopRequest

    number, told = signal.Signals[name], []

    def handler(*given):
        told.append((given[0], signal.getsignal(number) is handler))
        raise SystemExit(7)

    before = signal.signal(number, handler if waits else signal.SIG_DFL)
    is_warning = name.startswith("SIGUSR")
    try:
        with pytest.raises(SystemExit if waits and is_warning else StoppedError), StopRequest().listening():
            send(number)
    finally:
        signal.signal(number, before)
    assert told == ([(number, True)] if waits and is_warning else [])
