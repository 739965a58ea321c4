"""How likely the host's OOM killer ends a pod's VMM: as likely as the pod's containers.

A VMM inherits the shim's score, which is nearly as safe as containerd's. A pod that
Kubernetes would have killed first must not be spared because it is a VM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class OomScore:
    """The score of one pod's processes: that of its best protected container."""

    def __init__(self) -> None:
        self._scores: dict[str, int] = {}

    def admit(self, container_id: str, spec: Mapping[str, Any], pids: Iterable[int]) -> None:
        """Count a container, and give the processes the new score.

        Args:
            container_id: its id.
            spec: its OCI spec.
            pids: the pod's processes on the host.
        """
        score = spec.get("process", {}).get("oomScoreAdj")
        if score is not None:
            self._scores[container_id] = score
            self._apply(pids)

    def release(self, container_id: str, pids: Iterable[int]) -> None:
        """Forget a container that is gone."""
        if self._scores.pop(container_id, None) is not None and self._scores:
            self._apply(pids)

    def _apply(self, pids: Iterable[int]) -> None:
        score = min(self._scores.values())
        for pid in pids:
            try:
                with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as file:
                    file.write(str(score))
            except OSError:  # it ended, or we may not protect it more
                continue
