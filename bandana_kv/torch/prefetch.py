"""Reading for batches to come while the model works on one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from bandana_kv.errors import InputError
from bandana_kv.system.threads import cannot_start
from bandana_kv.torch.ahead import Counters, Early, begin, drop
from bandana_kv.torch.modules import Frozen

__all__ = ["Prefetcher"]


class Prefetcher:
    """Batches of a loader, whose rows are read while the model computes on those before.

    Parameters
    ----------
    loader
        What gives batches: a ``DataLoader``, or any iterable.
    module
        One of this room, or a model that has some in it.
    depth
        For how many batches beyond the one that is given out rows are read.
    inputs
        What becomes of a batch. Of a module of this room: what it will be called with, a tuple of
        several things or one thing; by default the batch is that. Of a model: what each of its
        modules of this room will be called with, by the module's name; then it must be given.

    Raises
    ------
    InputError
        An argument is wrong.

    Notes
    -----
    The module is called as ever. Where it asks for what was read, the answer is there; what it asks
    for besides, or with other ids, goes to the store. A request is known by its ids, offsets and
    weights, not by the tensor: they may have been moved to a GPU meanwhile.

    Rows are as of when they were read: an update or a switch of versions meanwhile shows `depth`
    batches later. A read that fails is done again by the module, which says what is wrong.

    Cost: one thread while batches are given out, and for each of `depth` + 1 batches its ids,
    copied, and its answers. Batches come out of the loader on the caller's thread, so many ahead.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        module: torch.nn.Module,
        depth: int = 2,
        *,
        inputs: Callable[[Any], Any] | None = None,
    ) -> None:
        if not isinstance(depth, int) or depth < 1:
            raise InputError(f"depth {depth!r} is not a whole number from 1 up")
        if not isinstance(module, Frozen):
            if inputs is None:
                raise InputError(
                    "of a whole model say what its modules are called with: inputs="
                    "lambda batch: {'name.of.module': batch[0]}"
                )
            if not any(isinstance(each, Frozen) for each in module.modules()):
                raise InputError("the model has no module of bandana_kv.torch to read for")
        self.loader = loader
        self.module = module
        self.depth = depth
        self._inputs = inputs
        self._counters = Counters()

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Give out the loader's batches, once each, in order, and then its error, if it has one."""
        waiting: deque[tuple[Any, list[Early]]] = deque()
        ended: list[Exception] = []
        source = iter(self.loader)
        pool = ThreadPoolExecutor(1, thread_name_prefix="bandana-kv-prefetch")
        try:
            while self._fill(waiting, source, ended, pool):
                batch, early = waiting.popleft()
                begun = time.perf_counter()
                try:
                    yield batch
                finally:
                    self._counters.step_seconds += time.perf_counter() - begun
                    self._counters.batches += 1
                    _drop_all(early)
            if not isinstance(ended[0], StopIteration):
                # Taken out: an error knows this frame, and that the loader, whose workers would
                # live on in a circle.
                raise ended.pop()
        finally:
            for _, early in waiting:
                _drop_all(early)
            pool.shutdown(wait=True, cancel_futures=True)

    def _fill(
        self,
        waiting: deque[tuple[Any, list[Early]]],
        source: Iterator[Any],
        ended: list[Exception],
        pool: ThreadPoolExecutor,
    ) -> bool:
        """Take batches until there are enough or no more; return whether there is one."""
        while len(waiting) <= self.depth and not ended:
            begun = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                ended.append(StopIteration())  # one that knows no frame
                break
            except Exception as error:  # those before it are given out first
                ended.append(error)
                break
            finally:
                self._counters.loader_seconds += time.perf_counter() - begun
            waiting.append((batch, self._begin(batch, pool)))
        return bool(waiting)

    def _begin(self, batch: Any, pool: ThreadPoolExecutor) -> list[Early]:
        begun: list[Early] = []
        try:
            for module, inputs in self._calls(batch):
                begun.append(begin(module.asked(*inputs), self._counters, pool.submit))
        except BaseException as error:
            if not cannot_start(error):
                _drop_all(begun)
                raise
        return begun  # without a thread the module reads when it is called

    def _calls(self, batch: Any) -> Iterator[tuple[Frozen, tuple[Any, ...]]]:
        given = batch if self._inputs is None else self._inputs(batch)
        if isinstance(self.module, Frozen):
            yield self.module, _arguments(given)
            return
        if not isinstance(given, Mapping):
            raise InputError(
                f"inputs must say by name what modules are called with, not {type(given).__name__}"
            )
        for name, each in given.items():
            module = self.module.get_submodule(name)
            if not isinstance(module, Frozen):
                raise InputError(f"{name!r} is no module of bandana_kv.torch")
            yield module, _arguments(each)

    def stats(self) -> dict[str, float]:
        """Return what was counted since it was made, over all epochs.

        Returns
        -------
        dict
            ``batches``; ``requests`` that were read ahead, and ``used``, those that a module then
            asked for; ``read_seconds`` that the reading took, and ``stall_seconds`` of them that
            the model waited; ``step_seconds`` between a batch and the next, and
            ``loader_seconds`` that the loader took; ``stall_share`` of a step, and ``overlap``, the
            share of the reading that nobody waited for.
        """
        found: dict[str, float] = asdict(self._counters)
        step, read = found["step_seconds"], found["read_seconds"]
        found["stall_share"] = found["stall_seconds"] / step if step else 0.0
        found["overlap"] = max(0.0, 1 - found["stall_seconds"] / read) if read else 0.0
        return found


def _arguments(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, (tuple, list)) else (given,)


def _drop_all(early: list[Early]) -> None:
    for each in early:
        drop(each)
