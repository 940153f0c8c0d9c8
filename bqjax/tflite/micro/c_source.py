"""A file as a C array, as ``xxd -i`` writes it, for firmware that has no file system."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["bytes_of_array", "c_array", "is_c_source"]

_SUFFIXES = (".cc", ".cpp", ".c", ".h")
_LINE = 12  # bytes a line


def is_c_source(path: Path) -> bool:
    """Whether a file's name is one of C source."""
    return path.suffix in _SUFFIXES


def c_array(content: bytes, name: str) -> str:
    """C++ source of a constant array, aligned to 16 bytes, with its length.

    Args:
      content: the bytes.
      name: of the array; what no identifier can have becomes ``_``.

    Example:
      >>> print(c_array(bytes([1, 255]), "my-model"))
      // 2 bytes
      alignas(16) extern const unsigned char my_model[] = {
          0x01, 0xff,
      };
      extern const unsigned int my_model_len = 2;
      <BLANKLINE>
    """
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    name = f"_{name}" if name[:1].isdigit() or not name else name
    lines = [
        "    " + " ".join(f"0x{byte:02x}," for byte in content[start : start + _LINE]) for start in range(0, len(content), _LINE)
    ]
    return "\n".join(
        [
            f"// {len(content)} bytes",
            f"alignas(16) extern const unsigned char {name}[] = {{",
            *lines,
            "};",
            f"extern const unsigned int {name}_len = {len(content)};",
            "",
        ]
    )


def bytes_of_array(text: str) -> bytes:
    """The bytes of the first array in C source, written as hexadecimal numbers.

    Raises:
      ValueError: there is none.
    """
    body = re.search(r"\[\s*\d*\s*\]\s*=\s*\{([^{}]*)\}", text)
    numbers = re.findall(r"\S+", body[1].replace(",", " ")) if body else []
    if not numbers or not all(re.fullmatch(r"0[xX][0-9a-fA-F]{1,2}", number) for number in numbers):
        raise ValueError("no array of bytes such as `xxd -i` and `bqjax compress --out model.cc` write: give the .tflite file")
    return bytes(int(number, 16) for number in numbers)
