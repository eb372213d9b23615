"""Cores that this process may use."""

import os


def n_cores() -> int:
    """Cores that the scheduler gives this process, or those of the machine where none is told."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
