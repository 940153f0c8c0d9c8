"""Lossless compression of weights: size and speed of bqjax's byte planes beside other ways, in one run on one core.

    python benchmarks/lossless.py WEIGHTS.safetensors ...

Every floating-point tensor of a file is taken in its own dtype, and rounded to bfloat16 and float16 as well, so that a float32 file
gives three rows of each coder. ``planes`` is :mod:`bqjax.codec.planes`, as ``bqjax compress --lossless`` writes it; ``planes +``
names other coders on the same planes; ``zstd`` is zstandard on the bytes as they are; ``zipnn`` appears where that package is
installed. Small tensors are put end to end, so that a call works on megabytes. Speeds are megabytes of weights by a second of
processor time, the best of several (of ``zstd -19`` the only one). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import zstandard

from bqjax.adapters.safetensors import read_weights
from bqjax.codec import entropy
from bqjax.codec.planes import decode_planes, encode_planes

Coder = tuple[Callable[[bytes], Any], Callable[[Any], bytes], int]  # encode, decode, repeats
REPEATS = 5


def _timed(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Shortest processor time in seconds, and the result."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = run()
        times.append(time.process_time() - start)
    return min(times), result


def _zstd(level: int) -> Coder:
    compressor = zstandard.ZstdCompressor(level=level)
    return compressor.compress, zstandard.ZstdDecompressor().decompress, 1 if level > 9 else REPEATS


def _planes(dtype: np.dtype, size: int) -> Coder:
    return lambda data: b"".join(encode_planes(data, dtype)), lambda stream: bytes(decode_planes(stream, size, dtype)), REPEATS


def _on_planes(dtype: np.dtype, size: int, encode: Callable[[bytes], bytes], decode: Callable[[bytes], bytes]) -> Coder:
    """Another coder on the same planes; one whole plane at a time, and as it is where that is no larger."""
    width = dtype.itemsize

    def split(data: bytes) -> list[bytes]:
        words = np.frombuffer(data, f"<u{width}")
        planes = ((words << 1) | (words >> (8 * width - 1))).view(np.uint8).reshape(-1, width)
        plain = [planes[:, i].tobytes() for i in range(width)]
        # Of a mantissa's low bytes nothing can be saved, and coders of symbols would take their time to find that out.
        return [min(encode(p), p, key=len) if i >= width - 2 + (width == 4) else p for i, p in enumerate(plain)]

    def join(parts: list[bytes]) -> bytes:
        words = np.empty(size // width, f"<u{width}")
        for i, part in enumerate(parts):
            plain = part if len(part) == words.size else decode(part)
            words.view(np.uint8).reshape(-1, width)[:, i] = np.frombuffer(plain, np.uint8)
        return ((words >> 1) | (words << (8 * width - 1))).tobytes()

    return split, join, 2


def _deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data) + coder.flush()


def coders(dtype: np.dtype, size: int) -> Iterator[tuple[str, Coder]]:
    """The rows for arrays of ``size`` bytes."""
    n = size // dtype.itemsize
    level1, level3 = zstandard.ZstdCompressor(level=1), zstandard.ZstdCompressor(level=3)
    unzstd = zstandard.ZstdDecompressor().decompress
    yield "planes", _planes(dtype, size)
    yield "planes + zstd -1", _on_planes(dtype, size, level1.compress, unzstd)
    yield "planes + zstd -3", _on_planes(dtype, size, level3.compress, unzstd)
    yield "planes + Huffman (zlib)", _on_planes(dtype, size, _deflate, lambda d: zlib.decompress(d, -15))
    yield (
        "planes + ans (constriction)",
        _on_planes(
            dtype,
            size,
            lambda p: entropy.encode(np.frombuffer(p, np.uint8), 256, "ans")[1],
            lambda d: entropy.decode(d, n, 256, "ans").tobytes(),
        ),
    )
    yield "zstd -3", _zstd(3)
    yield "zstd -19", _zstd(19)
    if importlib.util.find_spec("zipnn") is not None:
        import zipnn

        name = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}[dtype.name]
        tool = zipnn.ZipNN(input_format="byte", bytearray_dtype=name, threads=1)
        yield "zipnn", (tool.compress, lambda d: bytes(tool.decompress(d)), REPEATS)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="+")
    args = parser.parse_args()
    rows = []
    print(f"{'file':<32}{'dtype':<10}{'coder':<29}{'of the size':>11}{'in MB/s':>9}{'out MB/s':>10}")
    for path in args.weights:
        floats = [w.reshape(-1) for w in read_weights(path).values() if w.dtype.kind == "f" or w.dtype == ml_dtypes.bfloat16]
        whole = np.concatenate([w.astype(np.float32) for w in floats])
        stored = max(floats, key=lambda w: w.size).dtype
        for dtype in dict.fromkeys([stored, np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)]):
            data = whole.astype(dtype).tobytes()
            for name, (encode, decode, repeats) in coders(dtype, len(data)):
                encode_s, coded = _timed(lambda encode=encode, data=data: encode(data), repeats)
                decode_s, decoded = _timed(lambda decode=decode, coded=coded: decode(coded), repeats)
                if decoded != data:
                    raise RuntimeError(f"{name} does not decode to what was encoded")
                size = (sum(map(len, coded)) if isinstance(coded, list) else len(coded)) / len(data)
                speeds = [len(data) / seconds / 1e6 for seconds in (encode_s, decode_s)]
                print(f"{path.name:<32}{dtype.name:<10}{name:<29}{size:>11.3f}{speeds[0]:>9.0f}{speeds[1]:>10.0f}")
                row = {"file": path.name, "dtype": dtype.name, "coder": name, "size": size}
                rows.append(row | {"encode_mb_per_s": speeds[0], "decode_mb_per_s": speeds[1]})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
