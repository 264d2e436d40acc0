"""Workers of Ray: each an actor that keeps to its shares of the log, restarted where one dies.

Whatever a worker is asked is a function of its arguments and of files, so it is simply asked again
after it, its machine, or what it had returned is gone. Ray is imported here, and on use.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.placement.distributed.peak import Peak
from bandana_kv.placement.distributed.runner import Kernel, Moved, Sums, Task, bytes_in
from bandana_kv.placement.distributed.shares import Share

__all__ = ["OnRay"]

_TRIES = 10
_PAUSE_S = 0.5


class _Worker:
    """What runs in a process of Ray's."""

    def __init__(self) -> None:
        self._peak = Peak()

    def sums(self, kernel: Kernel, shares: Sequence[Share], *values: Any) -> Sums:
        found: Sums = self._peak.during(kernel, shares, *values)
        return found

    def run(self, task: Task, item: Any, *values: Any) -> Any:
        return self._peak.during(task, item, *values)

    def process(self) -> tuple[int, int]:
        """Return the process's id, and the most memory of its own that it had, resident."""
        self._peak.during(os.getpid)
        return os.getpid(), self._peak.bytes


def _imported() -> Any:
    """Return Ray, told before it is imported what it only reads then."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of it
    try:
        import ray
    except ImportError:
        raise MissingExtraError(
            "placing on workers of Ray needs ray: pip install 'bandana-kv[ray]'"
        ) from None
    return ray


class OnRay:
    """Works on a cluster of Ray's: the user's, or one that is started on this machine.

    Parameters
    ----------
    workers
        How many processes share the log; by default one for each processor of the cluster. Does
        not change any result.
    address
        Of a cluster: ``"auto"``, or as ``ray.init`` takes it. By default the one that this process
        is connected to, or ``RAY_ADDRESS`` names; else one is started here, on loopback alone and
        without a dashboard, and ended by :meth:`close`.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    InputError
        No cluster answers at `address`.

    Notes
    -----
    Workers need this library, and reach the log's files and the work directory by the same names
    as this process. A worker that dies is restarted by Ray, with its machine's death on another
    machine, and asked again: that costs time, and changes no result. This process has to live.
    """

    threads = 1

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"workers must be at least 1, not {workers}")
        address = address or os.environ.get("RAY_ADDRESS")
        if address is None and "ray" not in sys.modules:
            # What keeps Ray to loopback elsewhere does so on Linux, too.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        self._ray = _imported()
        self.moved = Moved()
        self._started = not self._ray.is_initialized()
        if self._started:
            self._start(workers, address)
        self.workers = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        made = self._ray.remote(_Worker).options(
            max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD"
        )
        self._workers = [made.remote() for _ in range(self.workers)]

    def _start(self, workers: int | None, address: str | None) -> None:
        given: dict[str, Any] = {"address": address}
        if address is None:
            given = {"include_dashboard": False, "num_cpus": workers, "address": "local"}
        try:
            self._ray.init(logging_level="ERROR", log_to_driver=False, **given)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = "on this machine" if address is None else f"at {address}"
            first = str(error).strip().splitlines()[:1]
            raise InputError(f"Ray does not start {where}: {''.join(first)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
        if self._started:
            self._ray.shutdown()

    def broadcast(self, value: NDArray[Any]) -> Any:
        """Put an array where all workers of a machine share one copy."""
        self.moved.down_bytes += value.nbytes * self.workers
        return self._ray.put(value)

    def map_log(self, kernel: Kernel, shares: Sequence[Share], *values: Any) -> Sums:
        """Return the sums, added up as they come."""
        total: Sums = ()
        asked = [
            (worker, (kernel, own, *values))
            for worker, own in zip(self._workers, _dealt(shares, self.workers), strict=True)
            if own
        ]
        waiting = [_Asked(worker, "sums", given) for worker, given in asked]
        for _, found in self._answers(waiting):
            self.moved.up_bytes += bytes_in(found)
            if not total:
                total = tuple(np.array(each) for each in found)
                continue
            for whole, more in zip(total, found, strict=True):
                whole += more
        return total

    def each(self, task: Task, items: Sequence[Any], *values: Any) -> Iterator[tuple[int, Any]]:
        """Yield what the task makes of each item; a worker has one at a time."""
        numbers = iter(range(len(items)))
        idle = list(self._workers)
        waiting: list[_Asked] = []

        def hand_out() -> None:
            while idle and (number := next(numbers, None)) is not None:
                given = (task, items[number], *values)
                waiting.append(_Asked(idle.pop(), "run", given, number))

        hand_out()
        for asked, found in self._answers(waiting):
            idle.append(asked.worker)
            hand_out()
            self.moved.up_bytes += bytes_in(found)
            yield asked.number, found

    def peak_bytes(self) -> list[int]:
        """Return the most memory that each worker's process had; a restarted one begins anew."""
        return [peak for _, peak in self.processes()]

    def processes(self) -> list[tuple[int, int]]:
        """Return each worker's process id, and the most memory of its own that it had."""
        waiting = [_Asked(worker, "process", (), at) for at, worker in enumerate(self._workers)]
        found = {asked.number: answer for asked, answer in self._answers(waiting)}
        return [found[at] for at in range(len(found))]

    def _answers(self, waiting: list[_Asked]) -> Iterator[tuple[_Asked, Any]]:
        """Yield what was asked and its answer, as they come; `waiting` may grow meanwhile."""
        exceptions = self._ray.exceptions
        sent: dict[Any, _Asked] = {}
        while waiting or sent:
            while waiting:
                asked = waiting.pop(0)
                sent[getattr(asked.worker, asked.what).remote(*asked.given)] = asked
            (done, *_), _ = self._ray.wait(list(sent), num_returns=1)
            asked = sent.pop(done)
            try:
                answer = self._ray.get(done)
            except exceptions.RayTaskError as error:
                raise error.cause from None
            except exceptions.RayError:
                # Gone with its worker or its machine, and Ray could not bring it back by itself.
                asked.tries += 1
                if asked.tries >= _TRIES:
                    raise
                time.sleep(_PAUSE_S)
                waiting.append(asked)
                continue
            yield asked, answer


class _Asked:
    """A call of a worker that has not been answered."""

    def __init__(self, worker: Any, what: str, given: tuple[Any, ...], number: int = 0) -> None:
        self.worker, self.what, self.given, self.number = worker, what, given, number
        self.tries = 0


def _dealt(shares: Sequence[Share], workers: int) -> list[list[Share]]:
    """Give each worker about as many lookups, the same shares each time."""
    dealt: list[list[Share]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for share in sorted(shares, key=lambda each: (-each.lookups, each.number)):
        least = loads.index(min(loads))
        dealt[least].append(share)
        loads[least] += share.lookups + 1
    return dealt
