"""How long-running functions tell their caller that work goes on."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress"]

Progress = Callable[[int, int, str], None]
"""``progress(done, total, message)``."""
