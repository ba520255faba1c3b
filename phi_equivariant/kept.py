"""What one pass leaves for the next, lists of pairs or solutions to start from: it is the caller's, not the model's."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any


class Memory:
    """The memory of one caller of models: {part of a model: what it keeps}, gone with the part.

    Calculators have one each, so that several on one model, in one thread or in many, keep their own. A pass outside of
    any ``with memory.used():`` has its thread's.
    """

    def __init__(self) -> None:
        self._items: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["Memory"], tuple[()]]:
        """Copies and files do without what is kept."""
        return Memory, ()

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Passes inside keep what they keep here."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.memory = Memory()


_current: ContextVar[Memory | None] = ContextVar("memory", default=None)
_of_thread = _OfThread()


def recall(owner: object) -> Any:
    """What ``owner``, a part of a model, kept in the caller's last pass; None if nothing."""
    return (_current.get() or _of_thread.memory)._items.get(owner)


def keep(owner: object, item: Any) -> None:
    """Keep an item for the caller's next pass."""
    (_current.get() or _of_thread.memory)._items[owner] = item
