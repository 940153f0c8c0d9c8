"""Rows side by side, one on each device."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from bqjax.experiment.entry import Entry
from bqjax.methods.base import Method

__all__ = ["side_by_side"]


def side_by_side(groups: Sequence[Sequence[Method]], row: Callable[[Method], Entry], devices: Sequence[jax.Device]) -> list[Entry]:
    """Rows of all groups, a group at a time on each device.

    Args:
      groups: of methods; those of one group run one after the other on the same device.
      row: runs a method.
      devices: at least one.
    """
    free: queue.SimpleQueue[jax.Device] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def rows(group: Sequence[Method]) -> list[Entry]:
        device = free.get()
        try:
            with jax.default_device(device):  # of this thread only
                return [row(method) for method in group]
        finally:
            free.put(device)

    pool = ThreadPoolExecutor(max_workers=len(devices))
    try:
        return [entry for future in [pool.submit(rows, group) for group in groups] for entry in future.result()]
    finally:
        pool.shutdown(cancel_futures=True)  # of an interrupt, rows that have begun are finished and kept
