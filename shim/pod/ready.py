"""Whether a task has said that it is ready: until then its failure is its starter's."""

from __future__ import annotations

import trio


class Ready(trio.TaskStatus[None]):
    """Passes ``started`` on and remembers it.

    Args:
        task_status: of the task that the nursery has started.
    """

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status
        self.said = False

    def started(self, value: None = None) -> None:
        """Tell the starter; see :class:`trio.TaskStatus`."""
        self.said = True
        self._task_status.started()
