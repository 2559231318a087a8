"""MATLAB files up to version 7: their structure is checked before scipy, which can crash on a damaged one, reads them.

The layout is that of MathWorks' "MAT-File Format" (level 5): elements of a tag (type and number of bytes) and data, in
which matrices, cells and structs nest. Version 7.3 is HDF5 and read elsewhere (`variables`).
"""

from __future__ import annotations

import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

#: Bytes of a number of each element type, and of a letter.
NUMBERS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
LETTERS = {1: 1, 2: 1, 4: 2, 16: 1, 17: 2, 18: 4}
#: Sparse truth values are written as bytes that are called doubles.
ANY = dict.fromkeys(NUMBERS, 1)
MATRIX, COMPRESSED = 14, 15
#: Classes of array: cell, struct, char, sparse, and the numbers.
CELL, STRUCT, CHAR, SPARSE = 1, 2, 4, 5
NUMERIC = range(6, 16)
#: A sparse matrix of more elements than this is not written out in full.
LARGEST = 200_000_000


class _Foreign(Exception):
    """An array of a class that is not checked here: an object, a function, a table."""


def load(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file. A struct is a dict, several are an array of dicts; a cell is an array of objects.

    Variables that hold objects, functions or tables are left out.

    Raises:
        ValueError: for a damaged file, or one that holds nothing else.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    names = checked(Path(path).read_bytes())
    if names is not None and not names:
        raise ValueError("it holds only objects, functions or tables; save numbers, cells or structs")
    try:
        found = loadmat(path, variable_names=names)
    except MatReadError as error:
        raise ValueError(str(error)) from error
    return {k: _plain(v) for k, v in found.items() if not k.startswith("__")}


def checked(data: bytes) -> list[str] | None:
    """Names of the variables whose structure is sound, or None for a file of version 4, which has no such structure.

    Raises:
        ValueError: where an element does not add up.
    """
    if len(data) < 128 or 0 in data[:4]:
        return None
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("its header has no mark of byte order")
    names, at = [], 128
    while at < len(data):
        kind, start, size = _tag(data, at, len(data), order)
        body, at = data[start : start + size], start + size
        if kind == COMPRESSED:
            body = _inflated(body, order)
            kind, start, size = _tag(body, 0, len(body), order)
            body = body[start : start + size]
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind} stands where a variable should")
        try:
            name, end = _matrix(body, 0, len(body), order)
        except _Foreign:
            continue
        if end != len(body):
            raise ValueError(f"variable {name!r} has {len(body) - end} bytes too many")
        names.append(name)
    return names


def _inflated(body: bytes, order: str) -> bytes:
    """A compressed element, and no more of it than its own tag announces."""
    machine = zlib.decompressobj()
    head = machine.decompress(body, 8)
    if len(head) < 8:
        raise ValueError("a compressed variable is cut off")
    size = struct.unpack(order + "II", head)[1]
    if size > 1040 * len(body):
        raise ValueError(f"a compressed variable of {len(body)} bytes announces {size}, more than they can hold")
    rest = machine.decompress(machine.unconsumed_tail, size) if size else b""
    if len(rest) < size:
        raise ValueError(f"a compressed variable announces {size} bytes and holds {len(rest)}")
    return head + rest


def _tag(data: bytes, at: int, end: int, order: str) -> tuple[int, int, int]:
    """Type, first byte and number of bytes of the element at `at`; four bytes or fewer may stand in the tag itself."""
    if end - at < 8:
        raise ValueError("an element is cut off")
    first, second = struct.unpack_from(order + "II", data, at)
    kind, start, size = (first & 0xFFFF, at + 4, first >> 16) if first >> 16 else (first, at + 8, second)
    if size > (4 if first >> 16 else end - start):
        raise ValueError(f"an element announces {size} bytes, more than there are")
    return kind, start, size


def _element(data: bytes, at: int, end: int, order: str, kinds: dict[int, int]) -> tuple[bytes, int, int]:
    """Bytes, bytes of one value, and end (padded to 8 bytes) of an element that must be of one of `kinds`."""
    kind, start, size = _tag(data, at, end, order)
    if kind not in kinds or size % kinds[kind]:
        raise ValueError(f"an element of type {kind} and {size} bytes stands where type {sorted(kinds)} should")
    after = at + 8 if start == at + 4 else start + size + -size % 8
    return data[start : start + size], kinds[kind], min(after, end)


def _matrix(data: bytes, at: int, end: int, order: str, depth: int = 0) -> tuple[str, int]:
    """Name and end of the array whose parts start at `at`."""
    if depth > 32:
        raise ValueError("cells and structs nest more than 32 deep")
    flags, _, at = _element(data, at, end, order, {6: 4})
    if len(flags) != 8:
        raise ValueError(f"the flags of an array have {len(flags)} bytes; expected 8")
    word = struct.unpack(order + "II", flags)[0]
    kind, is_complex = word & 0xFF, bool(word & 0x0800)
    if kind not in (CELL, STRUCT, CHAR, SPARSE, *NUMERIC):
        raise _Foreign
    raw, _, at = _element(data, at, end, order, {5: 4, 6: 4})
    shape = struct.unpack(f"{order}{len(raw) // 4}i", raw)
    if not 2 <= len(shape) <= 32 or min(shape) < 0:
        raise ValueError(f"an array has shape {shape}")
    letters, _, at = _element(data, at, end, order, {1: 1, 16: 1})
    number = prod(shape)
    if kind in (CELL, STRUCT):
        if kind == STRUCT:
            width, _, at = _element(data, at, end, order, {5: 4})
            fields, _, at = _element(data, at, end, order, {1: 1})
            long = struct.unpack(order + "i", width)[0] if len(width) == 4 else 0
            if long <= 0 or len(fields) % long:
                raise ValueError(f"names of fields take {len(fields)} bytes, {long} each")
            number *= len(fields) // long
        if number > (end - at) // 8:
            raise ValueError(f"a cell or struct announces {number} parts in {end - at} bytes")
        for _ in range(number):
            at = _part(data, at, end, order, depth)
    else:
        parts = [LETTERS] if kind == CHAR else [{5: 4}, {5: 4}, ANY] if kind == SPARSE else [NUMBERS]
        for kinds in parts + [NUMBERS] * (is_complex and kind != CHAR):
            values, width_, at = _element(data, at, end, order, kinds)
            if kind in NUMERIC and len(values) != number * width_:
                raise ValueError(f"an array of shape {shape} holds {len(values) // width_} numbers")
    return letters.decode("latin-1"), at


def _part(data: bytes, at: int, end: int, order: str, depth: int) -> int:
    """End of an array inside a cell or struct; one of no bytes is empty."""
    kind, start, size = _tag(data, at, end, order)
    if kind != MATRIX or start != at + 8:
        raise ValueError(f"an element of type {kind} stands where an array should")
    if size and _matrix(data, start, start + size, order, depth + 1)[1] != start + size:
        raise ValueError("an array in a cell or struct has bytes too many")
    return start + size


def _plain(value: Any) -> Any:
    """What loadmat gives: structs become dicts, cells stay arrays of objects, sparse matrices are written out."""
    if hasattr(value, "toarray"):
        if prod(value.shape) > LARGEST:
            raise ValueError(f"a sparse matrix has shape {value.shape}; save a smaller part of it")
        value = value.tocsc()
        value.check_format(full_check=True)
        value = value.toarray()
    value = np.asarray(value)
    if not value.dtype.names and (value.dtype != object or not value.ndim):
        return value if value.ndim else np.zeros(0)
    out = np.empty(value.shape, object)
    for index in np.ndindex(value.shape):
        item = value[index]
        out[index] = {n: _plain(item[n]) for n in value.dtype.names} if value.dtype.names else _plain(item)
    return out.item() if value.dtype.names and out.size == 1 else out
