"""Size and speed of the entropy coders beside the libraries that they stand on, in one run.

    python benchmarks/entropy.py

One million symbols of 8 kinds, as a layer's indices after Bin & Quant: a normal distribution cut into eight bins, entropy
near 2.285 bits. The rows ``constriction`` and ``zstandard -19`` call those libraries directly, with no table, no checks and
no padding. Times are the best of several
(zstd is slow to encode and does it once); megabytes are of one-byte symbols. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import constriction
import numpy as np
import zstandard

from bqjax.codec import entropy

KINDS = 8
# A normal distribution in bins 0.87 standard deviations wide, one of them around its mean: entropy 2.285 bits.
PROBABILITIES = np.array([0.0148, 0.0811, 0.2358, 0.3364, 0.2358, 0.0811, 0.0137, 0.0012])


def draw(n: int, seed: int) -> np.ndarray:
    """``[n]`` uint8 symbols."""
    return np.random.default_rng(seed).choice(KINDS, size=n, p=PROBABILITIES / PROBABILITIES.sum()).astype(np.uint8)


def empirical_entropy(symbols: np.ndarray) -> float:
    """Bits per symbol of the empirical distribution."""
    p = np.bincount(symbols, minlength=KINDS) / symbols.size
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def _best(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Shortest time in seconds, and the result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
    return min(times), result


def _constriction(symbols: np.ndarray) -> tuple[Callable[[], bytes], Callable[[bytes], np.ndarray]]:
    model = constriction.stream.model.Categorical(np.bincount(symbols, minlength=KINDS).astype(np.float64), perfect=False)

    def encode() -> bytes:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols.astype(np.int32), model)
        return coder.get_compressed().tobytes()

    def decode(data: bytes) -> np.ndarray:
        return constriction.stream.stack.AnsCoder(np.frombuffer(data, np.uint32)).decode(model, symbols.size).astype(np.uint8)

    return encode, decode


def _zstandard(symbols: np.ndarray) -> tuple[Callable[[], bytes], Callable[[bytes], np.ndarray]]:
    plain = symbols.tobytes()
    return (
        lambda: zstandard.ZstdCompressor(level=19).compress(plain),
        lambda data: np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint8),
    )


def _ours(symbols: np.ndarray, coder: str) -> tuple[Callable[[], bytes], Callable[[bytes], np.ndarray]]:
    return (
        lambda: entropy.encode(symbols, KINDS, coder)[1],
        lambda data: entropy.decode(data, symbols.size, KINDS, coder),
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    symbols = draw(args.symbols, args.seed)
    bound = empirical_entropy(symbols)
    coders = {name: _ours(symbols, name) for name in entropy.CODERS}
    coders |= {"constriction": _constriction(symbols), "zstandard -19": _zstandard(symbols)}
    print(f"{args.symbols:,} symbols of {KINDS} kinds, entropy {bound:.4f} bits")
    print(f"{'coder':<14}{'bits/symbol':>12}{'over entropy':>14}{'encode MB/s':>13}{'decode MB/s':>13}")
    rows = {}
    for name, (encode, decode) in coders.items():
        encode_s, data = _best(encode, 1 if name.startswith("zst") else args.repeats)
        decode_s, decoded = _best(lambda decode=decode, data=data: decode(data), args.repeats)
        if not np.array_equal(decoded, symbols):
            raise RuntimeError(f"{name} does not decode to what was encoded")
        bits = 8 * len(data) / symbols.size
        speeds = [symbols.size / seconds / 1e6 for seconds in (encode_s, decode_s)]
        print(f"{name:<14}{bits:>12.4f}{100 * (bits / bound - 1):>13.2f}%{speeds[0]:>13.1f}{speeds[1]:>13.1f}")
        rows[name] = {"bits_per_symbol": bits, "encode_mb_per_s": speeds[0], "decode_mb_per_s": speeds[1]}
    print(json.dumps({"symbols": args.symbols, "kinds": KINDS, "seed": args.seed, "entropy_bits": bound, "coders": rows}))


if __name__ == "__main__":
    main()
