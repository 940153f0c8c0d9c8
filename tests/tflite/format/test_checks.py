"""Hostile bytes: one clear error, whatever they are."""

from __future__ import annotations

import struct

import pytest

from bqjax.tflite.format.checks import verify


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0" * 64])
def test_what_is_no_flatbuffer_is_named(content):
    with pytest.raises(ValueError, match=r"not a \.tflite file"):
        verify(content)


def test_offsets_beyond_the_file_are_refused():
    with pytest.raises(ValueError, match="truncated or damaged"):
        verify(struct.pack("<I4s", 1 << 30, b"TFL3"))
