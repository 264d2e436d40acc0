"""How compiled code reads an engine: at any time, within a call, or begun and waited for later."""

from __future__ import annotations

from collections.abc import Callable

from bandana_kv.adapters.open_engine import OpenEngine
from bandana_kv.adapters.words import Queue, Standing, Words

__all__ = ["CompiledReads"]


class CompiledReads(OpenEngine):
    """What an engine that compiled code can read overrides; by default none can."""

    def standing(self) -> Standing | None:
        """Return what compiled code can read this engine with, at any time and without the GIL.

        Returns
        -------
        Standing or None
            Good while it is referenced; what is written later, another one knows. None: only
            :meth:`reading` can say, or only :meth:`multi_get` can read. *Cost*: next to nothing.
        """
        return None

    def reading(self, count: int, use: Callable[[Words], int]) -> int | None:
        """Have compiled code read `count` blocks of this engine.

        Parameters
        ----------
        use
            Called once with the words that such code needs, which are good until it returns.

        Returns
        -------
        int or None
            What `use` returned. None, and it was not called: only :meth:`multi_get` can read.

        Raises
        ------
        AdapterError
            The engine failed, or the adapter is closed.
        """
        del count
        standing = self.standing()
        return None if standing is None else use(standing.words)

    @classmethod
    def queue(cls) -> Queue | None:
        """Return a new queue for adapters of this class; None: each read must be waited for."""
        return None
