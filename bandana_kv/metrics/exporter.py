"""Numbers for Prometheus, with prometheus_client (extra ``metrics``)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bandana_kv.errors import InputError, MissingExtraError
from bandana_kv.metrics import Buckets, Measured, Metric
from bandana_kv.system.threads import start, threads_named

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

__all__ = ["Collector", "Exporter", "serve"]


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise MissingExtraError(
            "exporting metrics needs prometheus_client: pip install 'bandana-kv[metrics]'"
        ) from error
    return prometheus_client


class Collector:
    """Collects what stores, recorders and roll-outs say, for a registry of prometheus_client.

    ``prometheus_client.REGISTRY.register(Collector(store))`` adds it to what a process exports
    already.

    Parameters
    ----------
    measured
        Whose numbers; asked anew for each scrape. Two stores in one process are told apart by
        :class:`bandana_kv.metrics.Labelled`.

    Raises
    ------
    MissingExtraError
        prometheus_client is not installed.
    """

    def __init__(self, *measured: Measured) -> None:
        self._family = _prometheus().Metric
        self._measured = measured

    def collect(self) -> Iterator[Family]:
        """Return the numbers, those of one name together."""
        families: dict[str, Family] = {}
        for each in itertools.chain.from_iterable(one.metrics() for one in self._measured):
            if each.name not in families:
                families[each.name] = self._family(each.name, each.help, each.kind)
            for suffix, labels, value in _samples(each):
                families[each.name].add_sample(each.name + suffix, labels, value)
        yield from families.values()


def _samples(metric: Metric) -> Iterable[tuple[str, dict[str, str], float]]:
    """Return the endings, labels and values by which Prometheus knows a metric."""
    value, labels = metric.value, dict(metric.labels)
    if not isinstance(value, Buckets):
        return [("_total" if metric.kind == "counter" else "", labels, value)]
    edges = [*map(str, value.upper), "+Inf"]
    sums = list(itertools.accumulate(value.counts))
    return [
        *(
            ("_bucket", labels | {"le": edge}, count)
            for edge, count in zip(edges, sums, strict=True)
        ),
        ("_count", labels, sums[-1]),
        ("_sum", labels, value.total),
    ]


class Exporter:
    """Answers Prometheus until it is closed; a context manager, made by :func:`serve`."""

    def __init__(self, server: Any, thread: Any) -> None:
        self._server = server
        self._thread = thread
        self.port: int = server.server_port
        """That it listens on."""

    def close(self) -> None:
        """Answer no more, and release the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def serve(port: int, *measured: Measured, address: str = "127.0.0.1") -> Exporter:
    """Answer scrapes at ``http://address:port/metrics``, in a thread.

    Parameters
    ----------
    port
        0 takes any that is free.
    measured
        As for :class:`Collector`.
    address
        To listen on. By default only this machine is answered; there is no password.

    Raises
    ------
    MissingExtraError
        prometheus_client is not installed.
    InputError
        The port or the address cannot be listened on.
    ThreadError
        No thread could be started.
    """
    prometheus = _prometheus()
    registry = prometheus.CollectorRegistry()
    registry.register(Collector(*measured))
    try:
        # Where it finds no room for its thread, that server would leave its port taken.
        start(lambda: None, "bandana-kv-exporter").join()
        with threads_named():
            return Exporter(*prometheus.start_http_server(port, address, registry))
    except (OSError, OverflowError) as error:
        raise InputError(f"{address}:{port} cannot be listened on ({error})") from error
