"""Opening HDF5 files that may come from anyone: nothing outside the file is ever read through it."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py

#: Chunks that a dataset may announce and not store; HDF5 takes some 3 kB of memory for each of them that is read.
MOST_EMPTY_CHUNKS = 10_000


class HostileFile(ValueError):
    """A file that would make its reader open other files or fill the memory; the message names it and the object."""


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, after checking that no link and no dataset of it leads out of it.

    Raises:
        HostileFile: for an external link, external storage or a virtual dataset, or one of countless empty chunks.
        OSError: where it is no whole HDF5 file.
    """
    with ExitStack() as stack:
        file = stack.enter_context(h5py.File(path, "r"))
        _refuse_external(path, file)
        stack.pop_all()  # it stays open, and its reader closes it
    return file


def _refuse_external(path: Path, file: h5py.File) -> None:
    for where, item in objects(file):
        if isinstance(item, h5py.ExternalLink):
            raise HostileFile(
                f"{path}: {where} is a link to another file ({item.filename}); links out are not followed"
            )
        if not isinstance(item, h5py.Dataset):
            continue
        if item.external or item.is_virtual:
            raise HostileFile(f"{path}: the data of {where} lie in another file; only data inside the file are read")
        if _empty_chunks(item) > MOST_EMPTY_CHUNKS:
            raise HostileFile(
                f"{path}: {where} announces {item.shape} values, more than its {item.id.get_storage_size()} bytes can "
                "hold: most of its chunks were never written; write it again without them"
            )


def objects(file: h5py.File) -> Iterator[tuple[str, Any]]:
    """Path and object of everything in a file, the content of each group once: hard links may form circles.

    A link to another file comes as that link and is not followed; links to other places of the file are left out.
    """
    seen, left = {h5py.h5o.get_info(file.id).addr}, [("", file)]
    while left:
        above, group = left.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.SoftLink):
                continue
            item = link if isinstance(link, h5py.ExternalLink) else group[name]
            yield f"{above}/{name}", item
            if isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address not in seen:
                    seen.add(address)
                    left.append((f"{above}/{name}", item))


def check_heaps(path: Path) -> None:
    """See that the heaps of an HDF5 file, where words of any length lie, have no hole: the library loops on one.

    Raises:
        ValueError: where one has.
    """
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(b"GCOL\1\0\0\0")
        while at >= 0:
            size = int.from_bytes(data[at + 8 : at + 16], "little")
            place, end = at + 16, at + size
            while 4096 <= size <= len(data) - at and place + 16 <= end:
                number, length = struct.unpack("<H6xQ", data[place : place + 16])
                step = length if number == 0 else 16 + length + -length % 8
                if step < 16 or place + step > end:
                    raise ValueError(f"{path}: the heap at byte {at} is damaged; get the file again")
                place += step
            at = data.find(b"GCOL\1\0\0\0", at + 8)


def plausible(path: Path, data: h5py.Dataset) -> None:
    """Check that what a dataset's header announces can be what its file stores.

    Raises:
        ValueError: for a dataset of more than 64 MB that is 50 times as large as its stored bytes.
    """
    stored = data.id.get_storage_size()
    if data.size and data.size * data.dtype.itemsize > 50 * stored + 2**26:
        raise ValueError(
            f"{path}: {data.name} announces {data.shape} values of {data.dtype}, but {stored} bytes of it are stored; "
            "the file is damaged or unfinished: write it again"
        )


def _empty_chunks(data: h5py.Dataset) -> int:
    """Chunks of a dataset that were never written; 0 where it has few chunks."""
    if not data.chunks or not data.size:
        return 0
    announced = math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
    return announced - data.id.get_num_chunks() if announced > MOST_EMPTY_CHUNKS else 0
