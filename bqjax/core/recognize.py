"""What a file is, from its first bytes: so that every command can say it where another kind of file was given."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["FileKind", "recognize", "recognize_bytes", "refuse_other"]

_START = 4096


class FileKind(NamedTuple):
    """What a file is.

    Attributes:
      name: a short name: ``"bqjax"``, ``"safetensors"``, ``"tflite"``, ``"npz"``, ``"torch"``, ...
      what: the same in words, with an article: ``"a NumPy archive (.npz)"``.
      remedy: what to do with it.
    """

    name: str
    what: str
    remedy: str


def _by(how: str) -> str:
    return f"safetensors.numpy.save_file({how}, 'w.safetensors') converts it"


_UNPACK = "unpack it first"
_SAVE = "load it where it was made, and save its arrays by safetensors"

BQJAX = FileKind("bqjax", "a bqjax file, compressed already", "`bqjax inspect` shows it, `bqjax decompress` restores its weights")
SAFETENSORS = FileKind("safetensors", "a plain safetensors file", "`bqjax compress` makes a bqjax file of it")
_EMPTY = FileKind("empty", "empty", "it may not have been downloaded or written to its end")
_HTML = FileKind("html", "an HTML page, perhaps an error page in place of a download", "download the file itself")
_ZIP = FileKind("zip", "a zip archive (.npz, a PyTorch file)", _SAVE)
_NPZ = FileKind("npz", "a NumPy archive (.npz)", _by("dict(numpy.load(FILE))"))
_TORCH = FileKind("torch", "a PyTorch file (.pt, .pth, .bin)", _by("torch.load(FILE, weights_only=True)").replace("numpy", "torch"))
_KERAS = FileKind("keras", "a Keras model (.keras)", _SAVE)
_MSGPACK = FileKind("msgpack", "msgpack data (of Flax)", "read it by flax.serialization.msgpack_restore and save its arrays")
_INDEX = FileKind("index", "the index of a checkpoint of several files", "name it, or its folder, to `bqjax compress`")
_PICKLE = FileKind("pickle", "a Python pickle (an old PyTorch file, .pkl)", _SAVE)

_SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (4, b"TFL3", FileKind("tflite", "a .tflite model", "give it the ending .tflite, and `bqjax compress` reads it")),
    (
        0,
        b"version https://git-lfs",
        FileKind("git-lfs", "a git-lfs pointer, not the file itself", "run `git lfs pull`"),
    ),
    (0, b"\x93NUMPY", FileKind("npy", "a NumPy array (.npy)", _by("{'w': numpy.load(FILE)}"))),
    (
        0,
        b"\x89HDF",
        FileKind("hdf5", "an HDF5 file (.h5, of Keras)", _SAVE),
    ),
    (0, b"\x28\xb5\x2f\xfd", FileKind("zstd", "zstandard data", _UNPACK)),
    (0, b"\x1f\x8b", FileKind("gzip", "gzip data", _UNPACK)),
    (0, b"\xfd7zXZ\0", FileKind("xz", "xz data", _UNPACK)),
    (0, b"BZh", FileKind("bzip2", "bzip2 data", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("7z", "a 7z archive", _UNPACK)),
    (257, b"ustar", FileKind("tar", "a tar archive", _UNPACK)),
    (0, b"GGUF", FileKind("gguf", "a GGUF file", "compress the safetensors files that it was made of")),
    (0, b"LITERTLM", FileKind("litertlm", "a LiteRT-LM bundle", "give the .tflite file that is in it")),
    (0, b"lmgg", FileKind("ggml", "a GGML file", "compress the weights that it was made of")),
    (0, b"PAR1", FileKind("parquet", "a Parquet table", "it holds data, no weights")),
    *((0, b"\x80" + bytes([protocol]), _PICKLE) for protocol in range(2, 6)),
)


def recognize(path: str | os.PathLike[str]) -> FileKind | None:
    """What a file is, or None where it is of no kind that is known. Nothing is unpickled or unpacked.

    Raises:
      OSError: it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(_START)
        kind = recognize_bytes(start, path.suffix)
        if kind is _ZIP:
            return _archive(path)
        if kind is not None and kind.name == "json" and b'"weight_map"' in start + file.read(1 << 20):
            return _INDEX
    return kind


def refuse_other(path: str | os.PathLike[str], wanted: str, *names: str) -> None:
    """Raises ``ValueError`` where a file is recognized as something else than what is wanted, with what it is and what to do.

    Args:
      path: the file; where there is none, or it is of no known kind, nothing is said.
      wanted: in words, with an article.
      names: of the kinds that may be it.
    """
    kind = recognize(path) if Path(path).is_file() else None
    if kind is not None and kind.name not in names:
        raise ValueError(f"{path} is not {wanted}, it is {kind.what}: {kind.remedy}")


def recognize_bytes(start: bytes, suffix: str = "") -> FileKind | None:
    """What begins with these bytes. A zip archive is one, whatever it holds.

    Args:
      start: the first bytes; 4,096 are enough, nine tell most.
      suffix: of the file's name, which helps where a format has no signature.
    """
    if not start:
        return _EMPTY
    # Before the signatures: a header may have a length whose bytes are one.
    if start[4:9] == b"\0\0\0\0{":
        return BQJAX if b'"format":"bqjax"' in start.replace(b" ", b"") else SAFETENSORS
    for offset, signature, kind in _SIGNATURES:
        if start.startswith(signature, offset):
            return kind
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _ZIP
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")):
        return _HTML
    for fits, kind in _GUESSES:
        if fits(start, suffix.lower()):
            return kind
    return None


def _is_onnx(start: bytes, suffix: str) -> bool:
    # A protocol buffer: field 1, the version of the format; then field 2, the producer's name, or 7 or 8, graph and operators.
    return suffix == ".onnx" or (start[:1] == b"\x08" and 2 < start[1] < 32 and start[2:3] in (b"\x12", b"\x3a", b"\x42"))


def _is_msgpack(start: bytes, suffix: str) -> bool:
    # A map whose first key is a short string.
    head = start[1:] if 0x80 < start[0] < 0x90 else start[3:] if start[0] == 0xDE else b""
    return suffix == ".msgpack" or (len(head) > 1 and (0xA0 < head[0] < 0xC0 or head[0] == 0xD9))


def _is_text(start: bytes, _: str) -> bool:
    try:
        text = start[:256].decode("ascii")
    except UnicodeDecodeError:
        return False
    return len(text) > 1 and all(char.isprintable() or char.isspace() for char in text)


_GUESSES: tuple[tuple[Callable[[bytes, str], bool], FileKind], ...] = (
    (lambda start, _: start.lstrip()[:1] == b"{", FileKind("json", "JSON text", "name the file of the weights")),
    (_is_msgpack, _MSGPACK),
    (_is_onnx, FileKind("onnx", "an ONNX model", "save its initializers (onnx.numpy_helper.to_array) by safetensors")),
    (_is_text, FileKind("text", "text", "name the file of the weights")),
)


def _archive(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return _ZIP
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return _TORCH
    if names and all(name.endswith(".npy") for name in names):
        return _NPZ
    return _KERAS if {"config.json", "model.weights.h5"} & set(names) else _ZIP


def index_of(text: str) -> dict[str, str] | None:
    """The ``weight_map`` of an index, name of a tensor to name of a file; None where the text is no index."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    shards = found.get("weight_map") if type(found) is dict else None
    fits = type(shards) is dict and all(type(file) is str and file for file in shards.values())
    return shards if fits and shards else None
