"""Warnings of other packages that say nothing more than what follows them."""

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_warnings(logger: str) -> Generator[None, None, None]:
    """Keep back what a logger would say below the level of an error."""
    quiet = logging.getLogger(logger)
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        yield
    finally:
        quiet.setLevel(before)
