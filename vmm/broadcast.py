"""One producer, any number of subscribers, each with its own bounded queue."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")


class Subscription(Generic[T]):
    """One subscriber's view; iterate it, and leave its context to unsubscribe.

    A slow subscriber loses its oldest items (``dropped`` counts them), never the
    newest, so the last one (the exit of a VM) always arrives.
    """

    def __init__(self, owner: Broadcast[T], capacity: int) -> None:
        self._owner = owner
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._parking = trio.lowlevel.ParkingLot()
        self._closed = False
        self.dropped = 0

    def _put(self, item: T) -> None:
        if len(self._items) >= self._capacity:
            self._items.popleft()
            self.dropped += 1
        self._items.append(item)
        self._parking.unpark()

    def _close(self) -> None:
        self._closed = True
        self._parking.unpark_all()

    def __enter__(self) -> Subscription[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._owner._remove(self)

    def __aiter__(self) -> Subscription[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            await self._parking.park()
        return self._items.popleft()


class Broadcast(Generic[T]):
    """Fans items out to the subscribers of the moment; publishing never blocks."""

    def __init__(self) -> None:
        self._subscribers: list[Subscription[T]] = []
        self._closed = False

    def subscribe(self, capacity: int = 1024) -> Subscription[T]:
        """Return a subscription that sees every item published from now on.

        Args:
            capacity: items kept for a subscriber that does not read.
        """
        subscription = Subscription(self, capacity)
        if self._closed:
            subscription._close()
        else:
            self._subscribers.append(subscription)
        return subscription

    def publish(self, item: T) -> None:
        """Give an item to each subscriber."""
        for subscription in self._subscribers:
            subscription._put(item)

    def close(self) -> None:
        """End every subscription once its queue has been read."""
        self._closed = True
        for subscription in self._subscribers:
            subscription._close()
        self._subscribers.clear()

    def _remove(self, subscription: Subscription[T]) -> None:
        if subscription in self._subscribers:
            self._subscribers.remove(subscription)
