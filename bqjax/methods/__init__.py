"""Compression methods: one room each, and in each pure functions, their settings, and the object that runs them on a task."""

from bqjax.methods.base import Compressed, Method, Uncompressed

__all__ = ["Compressed", "Method", "Uncompressed"]
