"""What is damaged, how it is read, and what must come of it. A further kind of file is a class here and a line in ``TARGETS``."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from abc import ABC, abstractmethod
from pathlib import Path

import zstandard

from bqjax import codec
from bqjax.adapters.safetensors import open_file
from bqjax.codec import header
from bqjax.codec.same import fingerprint
from bqjax.core.leaves import is_compressed
from bqjax.core.recognize import recognize
from bqjax.core.tree import named_leaves
from fuzz import seeds
from fuzz.mutations import mutated, mutated_json

__all__ = ["TARGETS", "Target"]


class Target(ABC):
    """A kind of file."""

    name: str
    share: int = 1
    """How many cases it has beside those of the others."""

    @abstractmethod
    def files(self) -> list[bytes]:
        """The files that are damaged."""

    def damage(self, content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
        """One damaged file."""
        return mutated(content, rng, others)

    @abstractmethod
    def read(self, path: Path, original: bytes) -> None:
        """Reads a damaged file as the library's users do.

        Raises:
          ValueError: the file is refused.
          AssertionError: it is not, but what came is neither valid nor what was there.
        """


def _content(path: Path) -> dict[str, bytes]:
    return {name: fingerprint(name, leaf) for name, leaf in named_leaves(codec.load(path)).items()}


class Container(Target):
    """Containers with any bytes changed: the checksum refuses them, or nothing that counts was changed."""

    name, share = "container", 6

    def __init__(self) -> None:
        self._known: dict[bytes, dict[str, bytes]] = {}

    def files(self) -> list[bytes]:
        return seeds.containers()

    def read(self, path: Path, original: bytes) -> None:
        recognize(path)
        if original not in self._known:
            damaged = path.read_bytes()
            path.write_bytes(original)
            self._known[original] = _content(path)
            path.write_bytes(damaged)
        assert _content(path) == self._known[original], "other content was read"
        codec.inspect(path)


class Forged(Container):
    """Containers whose checksum and lengths were made to fit: refused, or valid leaves."""

    name, share = "forged container", 12

    def damage(self, content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
        start = 8 + int.from_bytes(content[:8], "little")
        cut = start + json.loads(content[8:start])["data"]["data_offsets"][1]
        data, tree = content[start:cut], content[cut:]
        match rng.randrange(4):
            case 0:
                data = mutated(data, rng, others)
            case 1:
                tree = mutated(tree, rng)
            case _:
                text = zstandard.ZstdDecompressor().decompress(tree)
                text = json.dumps(mutated_json(json.loads(text), rng)).encode() if rng.random() < 0.9 else mutated(text, rng)
                packed = zstandard.ZstdCompressor(level=1).compress(text)
                tree = packed.ljust(-(-len(text) // 64), b"\0")
                if rng.random() < 0.2:
                    data = mutated(data, rng, others)
        return header.Header(len(data), len(tree), hashlib.sha256(data + tree).hexdigest()).to_bytes() + data + tree

    def read(self, path: Path, original: bytes) -> None:
        codec.inspect(path)
        for name, leaf in named_leaves(codec.load(path)).items():
            if is_compressed(leaf):
                leaf.validate(name)


class Weights(Target):
    """Plain safetensors files: refused, or tensors of the sizes that they state."""

    name, share = "safetensors", 8

    def files(self) -> list[bytes]:
        return seeds.weights()

    def damage(self, content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
        if rng.random() < 0.5:
            return mutated(content, rng, others)
        start = 8 + int.from_bytes(content[:8], "little")
        text = json.dumps(mutated_json(json.loads(content[8:start]), rng)).encode()
        return len(text).to_bytes(8, "little") + text + content[start:]

    def read(self, path: Path, original: bytes) -> None:
        tensors, metadata = open_file(path)
        assert all(isinstance(x, str) for item in metadata.items() for x in item)
        for tensor in tensors.values():
            assert tensor.read().nbytes == tensor.type.nbytes


class Model(Target):
    """``.tflite`` models: refused, or every constant lies within the file and rewriting it changes nothing."""

    name, share = "tflite model", 8

    def files(self) -> list[bytes]:
        return seeds.models()

    def read(self, path: Path, original: bytes) -> None:
        from bqjax.tflite.format.constants import constants
        from bqjax.tflite.format.model import parse_model, rewritten

        content = path.read_bytes()
        recognize(path)
        for constant in constants(content):
            assert 0 <= constant.start <= constant.start + constant.size <= len(content)
        model = parse_model(content)
        assert rewritten(model, model.params) == content


class StoredModel(Target):
    """Containers of models: refused, or the model that was stored, byte for byte."""

    name, share = "tflite container", 4

    def __init__(self) -> None:
        self._models: dict[bytes, bytes] = {}

    def files(self) -> list[bytes]:
        self._models = seeds.stored_models()
        return [*self._models]

    def damage(self, content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
        return mutated(content, rng, others) if rng.random() < 0.4 else Forged().damage(content, rng, others)

    def read(self, path: Path, original: bytes) -> None:
        from bqjax.tflite.container import load_model, stored_constants

        assert load_model(path) == self._models[original], "another model was restored"
        stored_constants(path)


class Kept(Target):
    """Damaged models entropy-coded: what is not refused comes back byte for byte. Packing takes milliseconds, so they are few."""

    name, share = "tflite lossless", 1

    def files(self) -> list[bytes]:
        return seeds.models()

    def read(self, path: Path, original: bytes) -> None:
        from bqjax.tflite.container import load_model, save_lossless

        content = path.read_bytes()
        out = path.with_name(path.name + ".bq")
        save_lossless(out, content, coder="ans", force=True)
        assert load_model(out) == content


class Micro(Target):
    """Files for TFLM: refused, or a plain twin that is its own."""

    name, share = "tflm file", 4

    def files(self) -> list[bytes]:
        return seeds.micro_files()

    def read(self, path: Path, original: bytes) -> None:
        from bqjax.tflite.micro import is_micro, read_micro

        if is_micro(path):
            twin = read_micro(path).twin
            path.write_bytes(twin)
            assert read_micro(path).twin == twin


TARGETS: tuple[type[Target], ...] = (Container, Forged, Weights, Model, StoredModel, Kept, Micro)


def quietly(target: Target, path: Path, original: bytes) -> str | None:
    """Reads a damaged file; the message where it is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # of arithmetic on what a file holds
            warnings.simplefilter("ignore", UserWarning)
            target.read(path, original)
    except ValueError as error:
        message = str(error)
        assert message and len(message) < 2000, f"a message of {len(message)} characters"
        return message
    return None
