"""Ways to damage a file: each takes its bytes and gives damaged ones, and a few words on what was done."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

Damage = Callable[[bytes, np.random.Generator], tuple[bytes, str]]

#: Numbers as text that a field of a header may not survive.
WORDS = (
    "0", "-1", "1", "2", "4096", "65535", "99999999", "-9999999", "2147483647", "2147483648", "1e9", "1e-9", "1e308",
    "nan", "inf", "", "x", "0x10", "1.5",
)  # fmt: skip
#: Binary numbers at the limits of their type.
LIMITS = (
    b"\0", b"\xff", b"\x7f", b"\0\0", b"\xff\xff", b"\xff\x7f", b"\0\x80", b"\0\0\0\0", b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\x00\x40", b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f",
    struct.pack("<d", np.nan), struct.pack("<d", 1e300), struct.pack("<f", np.inf), struct.pack(">i", 2**31 - 1),
)  # fmt: skip
PAGE = b"<!DOCTYPE html>\n<html><head><title>503</title></head><body>Service unavailable</body></html>\n"


def cut(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Truncate: at nothing, one byte, anywhere, or near the end."""
    ends = (0, 1, *rng.integers(0, max(1, len(data)), 4), *(len(data) - rng.integers(1, 65, 3)))
    at = max(0, int(rng.choice(ends)))
    return data[:at], f"cut to {at} bytes of {len(data)}"


def flip(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Flip up to eight bits anywhere."""
    return _flipped(data, rng, len(data))


def flip_head(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Flip up to eight bits near the start."""
    return _flipped(data, rng, min(len(data), int(rng.choice([64, 512, 4096]))))


def _flipped(data: bytes, rng: np.random.Generator, end: int) -> tuple[bytes, str]:
    out = bytearray(data)
    places = sorted(int(x) for x in rng.integers(0, max(1, end), rng.integers(1, 9))) if out else []
    for at in places:
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out), f"flipped a bit of bytes {places}"


def limit(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A binary number at its limit, aligned, somewhere in the first bytes or anywhere."""
    value = LIMITS[int(rng.integers(len(LIMITS)))]
    end = min(len(data), int(rng.choice([128, 1024, max(1, len(data))])))
    at = int(rng.integers(0, max(1, end - len(value)))) // len(value) * len(value)
    return data[:at] + value + data[at + len(value) :], f"{value.hex()} at byte {at}"


def blank(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A stretch of zeros or noise, as a bad sector leaves it."""
    size = int(rng.choice([16, 512, 4096]))
    at = int(rng.integers(0, max(1, len(data) - size)))
    fresh = rng.bytes(size) if rng.integers(2) else bytes(size)
    return data[:at] + fresh[: len(data) - at] + data[at + size :], f"{size} bytes of zeros or noise at {at}"


def append(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Garbage behind the end."""
    more = rng.bytes(int(rng.choice([1, 7, 512, 5000])))
    return data + more, f"{len(more)} bytes behind the end"


def page(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A web page in place of data."""
    return PAGE * int(rng.choice([1, 200])), "a web page"


def edf_field(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A field of an EDF or BDF header at a limit."""
    n, at = int(data[252:256]), 256
    fields = {"size": (184, 8), "plus": (192, 5), "records": (236, 8), "duration": (244, 8), "signals": (252, 4)}
    for name, wide in (
        ("label", 16), ("transducer", 80), ("dimension", 8), ("physical minimum", 8), ("physical maximum", 8),
        ("digital minimum", 8), ("digital maximum", 8), ("prefilter", 80), ("samples", 8),
    ):  # fmt: skip
        fields[name] = (at + int(rng.integers(n)) * wide, wide)
        at += wide * n
    name = str(rng.choice([x for x in fields if x not in ("transducer", "prefilter", "label")]))
    place, wide = fields[name]
    word = str(rng.choice([w for w in (*WORDS, "EDF+D", "mV", "BDF+D") if len(w) <= wide]))
    return data[:place] + word.encode().ljust(wide) + data[place + wide :], f"{name} = {word!r}"


def text_field(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A number in a text (BrainVision, tables, JSON, XML) at a limit, or a line gone, or twice."""
    text = data.decode("latin-1")
    how = int(rng.integers(4))
    lines = text.splitlines(keepends=True)
    row = int(rng.integers(min(len(lines), 60)))
    if how == 0:
        return "".join(lines[:row] + lines[row + 1 :]).encode("latin-1"), f"line {row + 1} gone"
    if how == 1:
        return "".join([*lines[: row + 1], *lines[row:]]).encode("latin-1"), f"line {row + 1} twice"
    found = list(re.finditer(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text[:20_000]))
    if not found:
        return flip(data, rng)
    match, word = found[int(rng.integers(len(found)))], str(rng.choice([*WORDS, "9" * 400, "1e999"]))
    made = text[: match.start()] + word + text[match.end() :]
    return made.encode("latin-1"), f"{match[0]!r} at {match.start()} = {word[:20]!r}"


def vhdr_field(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A line of a BrainVision header with another value."""
    values = {
        "NumberOfChannels": WORDS, "SamplingInterval": WORDS, "DataPoints": WORDS,
        "DataFile": ("../a.eeg", "/etc/passwd", "", ".", "x" * 300), "BinaryFormat": ("INT_32", "IEEE_FLOAT_32", "x"),
        "MarkerFile": ("../a.vmrk", "/etc/passwd", "missing.vmrk", "."),
        "DataOrientation": ("VECTORIZED", "MULTIPLEXED", "x"), "Ch1": ("A,,0,µV", "A,,nan,µV", "A,,1e99,V", "A", ""),
    }  # fmt: skip
    key = str(rng.choice(list(values)))
    word = str(rng.choice(values[key]))
    line = f"{key}={word}".encode()
    pattern = rb"(?m)^%s=[^\r\n]*" % key.encode()
    made, count = re.subn(pattern, lambda _: line, data, count=1)
    if not count:
        made = data.replace(b"[Common Infos]", b"[Common Infos]\n" + line, 1)
    return made, line.decode()[:60]


def inside(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Damage under the compression of a gzip file, or of the first variable of a .mat, then compress it again."""
    damage = (limit, flip_head, cut)[int(rng.integers(3))]
    if data[:2] == b"\x1f\x8b":
        made, said = damage(gzip.decompress(data), rng)
        return gzip.compress(made, mtime=0), f"{said}, compressed again"
    kind, size = struct.unpack("<II", data[128:136]) if data[126:128] == b"IM" else (0, 0)
    if kind != 15:
        return damage(data, rng)
    made, said = damage(zlib.decompress(data[136 : 136 + size]), rng)
    packed = zlib.compress(made)
    return data[:128] + struct.pack("<II", 15, len(packed)) + packed + data[136 + size :], f"{said}, compressed again"


def header_text(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """Another shape or type in the header of an .npy array, which announces more than there is."""
    match = re.search(rb"\{'descr': '([^']*)', .*?'shape': (\([^)]*\)), \}", data[:400])
    if match is None:
        return flip_head(data, rng)
    shape = str(rng.choice(["(1000000, 1000000)", "(-1, 12)", "(0, 12)", "(99,)", "(10,)*9", "(2,2,360)"]))
    type_ = str(rng.choice(["<f8", "|O", "<f4", "<i8", "|V8", "<U2"]))
    old = match[0]
    new = old.replace(match[1], type_.encode()).replace(match[2], shape.encode())
    rest = data[match.end() :]
    spaces = len(rest) - len(rest.lstrip(b" "))
    body = rest.lstrip(b" ")
    padding = b" " * max(0, spaces + len(old) - len(new))
    return data[: match.start()] + new + padding + body, f"array of {shape} {type_}"


def hdf5_object(path: Path, rng: np.random.Generator) -> str:
    """Change one thing of an HDF5 file through h5py: an attribute, a value, a shape, or an object that goes."""
    limits = (0, -1, 1, 2**31, -(2**62), 10**12, 0.5, np.nan, np.inf, -np.inf, 1e300, 1e-300)
    with h5py.File(path, "r+") as file:
        groups, data = [file], []
        file.visititems(lambda _, item: (data if isinstance(item, h5py.Dataset) else groups).append(item))
        data = [item for item in data if not item.name.startswith("/specifications")]
        groups = [item for item in groups if not item.name.startswith("/specifications")]
        how = str(rng.choice(["attribute", "attribute", "attribute", "value", "gone", "lie", "short", "loop"]))
        value = limits[int(rng.integers(len(limits)))]
        items = [item for item in (*groups, *data) if len(item.attrs)]
        if how == "attribute" and items:
            item = items[int(rng.integers(len(items)))]
            key = str(rng.choice(sorted(item.attrs)))
            item.attrs[key] = value if rng.integers(4) else "changed"
            return f"{item.name}@{key} = {item.attrs[key]}"
        item = data[int(rng.integers(len(data)))]
        name, shape = item.name, item.shape
        if how == "value" and item.size and item.dtype.kind in "iuf":
            index = tuple(int(rng.integers(n)) for n in shape)
            info = np.iinfo(item.dtype) if item.dtype.kind in "iu" else None
            if info is not None:
                value = min(max(int(np.nan_to_num(value, posinf=2**60, neginf=-(2**60))), info.min), info.max)
            item[index] = value
            return f"{name}{list(index)} = {value}"
        attributes, dtype, old = dict(item.attrs), item.dtype, item[()]
        if how == "loop":
            parent = groups[int(rng.integers(len(groups)))]
            link = file if rng.integers(2) else h5py.SoftLink(f"{parent.name.rstrip('/')}/loop")
            parent["loop"] = link
            return f"{parent.name}/loop = {link}"
        del file[name]
        if how == "lie" and shape:
            made = file.create_dataset(name, (10**6, *shape[1:]), dtype, chunks=tuple(max(1, n) for n in shape))
        elif how == "short" and shape and shape[0] > 1:
            made = file.create_dataset(name, data=old[: int(rng.integers(shape[0]))])
        else:
            return f"{name} gone"
        made.attrs.update({k: v for k, v in attributes.items() if k != "reference"})
        return f"{name} has shape {made.shape}, was {shape}"


def shard_header(path: Path, rng: np.random.Generator) -> str:
    """Change one thing in the header of a shard and give it the checksums of that: a liar's file, not a damaged one."""
    from brainfm.shards import schema

    limits = (None, 0, -1, 1, 2**31, -(2**62), 10**12, 0.5, float("nan"), float("inf"), 1e300, "", "x", [], {})
    with h5py.File(path, "r+") as file:
        header = json.loads(file["header"][()].tobytes())
        places: list[tuple[dict | list, object]] = []
        left: list = [header]
        while left:
            node = left.pop()
            items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
            places += [(node, key) for key, _ in items]
            left += [value for _, value in items if isinstance(value, dict | list)]
        node, key = places[int(rng.integers(len(places)))]
        if rng.integers(4):
            node[key] = limits[int(rng.integers(len(limits)))]
            said = f"header {key} = {node[key]}"
        else:
            del node[key]
            said = f"header {key} gone"
        with suppress(KeyError, TypeError, AttributeError, ValueError):
            for entry in header["recordings"].values():
                entry["checksum"] = schema.checksum(entry)
        data = json.dumps(header, sort_keys=True, ensure_ascii=False).encode()
        del file["header"]
        made = file.create_dataset("header", data=np.frombuffer(data, np.uint8))
        made.attrs["sha256"] = np.bytes_(hashlib.sha256(data).hexdigest())
    return f"{said}, with the checksum of that"


ALWAYS: tuple[Damage, ...] = (cut, cut, flip, flip, flip_head, flip_head, blank, append, page)
#: Layout → further damages, besides those that every file gets.
FORMS: dict[str, tuple[Damage, ...]] = {
    "edf": (edf_field,) * 8, "vhdr": (vhdr_field,) * 8 + (text_field,) * 3, "vmrk": (text_field,) * 4,
    "csv": (text_field,) * 6, "json": (text_field,) * 4, "xml": (text_field,) * 6, "fif": (limit,) * 6,
    "mat": (limit, inside, inside, inside), "nii": (limit, limit, inside, inside, inside),
    "npy": (header_text,) * 3, "npz": (header_text, limit), "hdf": (limit,), "shard": (limit,), "codes": (limit,),
}  # fmt: skip
