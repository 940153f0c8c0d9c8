"""Changes of a file: of single bits up to parts of other files, and of the JSON in it."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

__all__ = ["mutated", "mutated_json"]

_WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 256, 65_535, 65_536, 1 << 31, 1 << 40, 1 << 48, 1 << 63, 1 << 200, 0.5, 1e300),
    *("", "a", "c", "m", "s", "ans", "raw", "zstd", "planes", "F32", "F4", "U8", "float32", "bfloat16", "uint8", "\0", "x" * 300),
    *([], {}, [[]], [0, 0], [1 << 40], [0] * 70, {"x": "m"}, ["t", 0], ["d", 1, 0]),
)


def mutated(content: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to three changes of some bytes."""
    new = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not new:
            break
        at = rng.randrange(len(new))
        match rng.randrange(9):
            case 0 | 1:
                new[at] ^= 1 << rng.randrange(8)
            case 2:
                new[at] = rng.randrange(256)
            case 3:
                size = rng.choice((1, 2, 4, 8))
                at -= at % size
                new[at : at + size] = (rng.choice((*_WORDS, len(content))) & (256**size - 1)).to_bytes(size, "little")
            case 4:
                source = rng.randrange(len(new))
                size = rng.choice((1, 4, 4, 16, 64))
                new[at : at + size] = new[source : source + size]
            case 5:
                del new[at:]
            case 6:
                del new[at : at + rng.choice((1, 4, 8, 100))]
            case 7:
                new[at:at] = rng.randbytes(rng.choice((1, 4, 8, 100)))
            case 8:
                other = rng.choice(others) if others else content
                source = rng.randrange(max(1, len(other)))
                new[at : at + rng.choice((4, 32, 512))] = other[source : source + rng.choice((4, 32, 512))]
    return bytes(new)


def mutated_json(document: Any, rng: random.Random) -> Any:
    """The document with one to three of its values, keys or entries changed."""
    new = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = _places(new)
        if not places:
            return _value(rng)
        node, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1:
                node[key] = _value(rng)
            case 2:
                node[key] = _shifted(node[key], rng)
            case 3:
                other, place = rng.choice(places)
                node[key] = json.loads(json.dumps(other[place]))
            case 4:
                del node[key]
            case 5:
                if isinstance(node, dict):
                    node[rng.choice(("x", "s", "t", "e", "n", "q", "k", "d", "o", "g", "p", "l", "w", "b", "a"))] = node.pop(key)
                else:
                    node.insert(key, json.loads(json.dumps(node[key])))
    return new


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(_VALUES))  # later changes must not reach the values of other cases


def _shifted(value: Any, rng: random.Random) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 1000))
    return _value(rng)


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every entry of every list and dict of a document."""
    found: list[tuple[Any, Any]] = []
    waiting = [node]
    while waiting:
        at = waiting.pop()
        for key in at if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ():
            found.append((at, key))
            waiting.append(at[key])
    return found
