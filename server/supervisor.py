"""Keeps a server serving: restarts one that died or gives wrong answers, and stops it in order.

When the process of a Python model has died, Triton does not restart it and still calls itself and its models ready. So
the processes are watched from outside, and a one-step generation is compared with that of the start.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Thread

from server.errors import ServerError
from server.health import Busy, Health, probe
from server.proc import alive
from server.process import TritonServer
from server.shutdown import describe

POLL_S = 0.2
FAILED_CHECKS = 2
# Running requests may finish before a restart, but clients of the dead process wait meanwhile.
RESTART_GRACE_S = 5.0
RETRY_PAUSE_S = 1.0


@dataclass(frozen=True)
class Policy:
    """grace_s            for running requests when the server is stopped
    health_interval_s  from one health check to the next; 0 = none
    health_timeout_s   for its answer; FAILED_CHECKS failures in a row mean a restart
    max_restarts       within restart_window_s; one more ends the server, since another would not help
    startup_timeout_s  for a start, its first generation included
    bitwise            whether an image is the same bit for bit each time (`Health.check_same`)
    """

    grace_s: float = 30.0
    health_interval_s: float = 10.0
    health_timeout_s: float = 30.0
    max_restarts: int = 3
    restart_window_s: float = 600.0
    startup_timeout_s: float = 120.0
    bitwise: bool = True


class Supervisor:
    """Runs the servers that `make` gives, one after the other.

    asked: whether a stop was asked for. The KeyboardInterrupt may have been lost, because code between C and Python,
    such as gRPC's, can swallow it. hurry: whether to end a drain at once. report: takes lines for people.
    """

    def __init__(
        self,
        make: Callable[[], TritonServer],
        policy: Policy,
        *,
        asked: Callable[[], bool] = lambda: False,
        hurry: Callable[[], bool] = lambda: False,
        report: Callable[[str], None] = print,
    ) -> None:
        self._make, self._policy, self._report = make, policy, report
        self._asked, self._hurry = asked, hurry
        self._known: Health | None = None
        self._restarts: deque[float] = deque()

    def run(self, announce: Callable[[TritonServer, bool], None]) -> None:
        """Serve until KeyboardInterrupt, then drain and stop.

        announce: called after the first start, with whether others kept the server from a one-step generation.

        Raises:
            ServerError: it did not start, or needed too many restarts.
        """
        server = self._start()
        try:
            announce(server, self._known is None)
            while True:
                server = self._restart(server, self._watch(server))
        except KeyboardInterrupt:
            self._stop(server)
        finally:
            server.stop()

    def _start(self) -> TritonServer:
        server = self._make()
        try:
            server.start()
            self._check(partial(server.probe, self._policy.startup_timeout_s))
        except BaseException:
            server.stop()
            raise
        return server

    def _stop(self, server: TritonServer) -> None:
        grace = self._policy.grace_s
        self._report(f"Draining: running requests have {grace:g} s, new ones are refused; a second signal ends it now.")
        drained = server.drain(grace, self._hurry)
        server.stop(quick=drained)
        self._report("Stopped." if drained else "Stopped; requests that were left have been refused.")

    def _watch(self, server: TritonServer) -> str:
        """Block until the server needs a restart; returns the reason."""
        stubs = server.stubs()
        ask = partial(probe, server.grpc_url, self._policy.health_timeout_s, server.access)
        checks = PeriodicCheck(lambda: self._check(ask), self._policy.health_interval_s)
        while True:
            if self._asked():
                raise KeyboardInterrupt
            time.sleep(POLL_S)
            if (status := server.poll()) is not None:
                return f"tritonserver ended by itself with {describe(status)}"
            if dead := sorted(name for pid, name in stubs.items() if not alive(pid)):
                return f"the process of {', '.join(dead)} has died"
            if not server.draining and (problem := checks.problem()):
                return problem

    def _check(self, ask: Callable[[], Health]) -> None:
        """Compare the image with the first one; raises ServerError.

        A busy server has not failed, not even right after its start: clients may have waited for it.
        """
        with contextlib.suppress(Busy):
            health = ask()
            self._known = self._known or health
            health.check_same(self._known, bitwise=self._policy.bitwise)

    def _restart(self, server: TritonServer, reason: str) -> TritonServer:
        policy = self._policy
        while True:
            now = time.monotonic()
            while self._restarts and now - self._restarts[0] > policy.restart_window_s:
                self._restarts.popleft()
            failure = server.failure(reason)
            if len(self._restarts) >= policy.max_restarts:
                done = f"{len(self._restarts)} of {policy.max_restarts} restarts within {policy.restart_window_s:g} s"
                raise server.failure(f"{reason}; {done} have not helped, given up")
            self._restarts.append(now)
            self._report(f"{failure}\nRestarting ({len(self._restarts)} of {policy.max_restarts}) ...")
            server.drain(min(policy.grace_s, RESTART_GRACE_S), self._hurry)
            server.stop(quick=True)
            try:
                server = self._start()
            except (ServerError, OSError) as error:
                reason = str(error).splitlines()[0]
                time.sleep(RETRY_PAUSE_S)
            else:
                self._report(f"Ready again after {time.monotonic() - now:.1f} s, process {server.pid}.")
                return server


class PeriodicCheck:
    """Runs a check from time to time in a separate thread: a check that hangs must not hide a process that died."""

    def __init__(self, check: Callable[[], None], interval_s: float) -> None:
        self._check, self._interval_s = check, interval_s
        self._next = time.monotonic() + interval_s
        self._running: Future[None] | None = None
        self._failures = 0

    def problem(self) -> str:
        """Why the last FAILED_CHECKS checks failed; empty unless all of them have. Returns at once."""
        if self._running is not None and self._running.done():
            error, self._running = self._running.exception(), None
            self._failures = self._failures + 1 if error else 0
            if self._failures == FAILED_CHECKS:
                return f"the health check failed {FAILED_CHECKS} times in a row: {error}"
            # A failed check is repeated at once.
            self._next = time.monotonic() + (0 if error else self._interval_s)
        if self._interval_s and self._running is None and time.monotonic() >= self._next:
            self._running = Future()
            Thread(target=self._run, args=(self._running,), name="health check", daemon=True).start()
        return ""

    def _run(self, future: Future[None]) -> None:
        try:
            self._check()
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(None)
