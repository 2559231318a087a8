"""Opening HDF5 files that may come from anyone: nothing outside the file is ever read through it."""

from __future__ import annotations

from pathlib import Path

import h5py


class HostileFile(ValueError):
    """A file that would make its reader open other files; the message names it and the object."""


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, after checking that no link and no dataset of it leads out of it.

    Raises:
        HostileFile: for an external link, external storage or a virtual dataset.
        OSError: where it is no whole HDF5 file.
    """
    file = h5py.File(path, "r")
    try:
        _refuse_external(path, file, set())
    except BaseException:
        file.close()
        raise
    return file


def _refuse_external(path: Path, group: h5py.Group, seen: set[int]) -> None:
    """Walk every group once (hard links may form circles) without following a link out of the file."""
    for name in group:
        link = group.get(name, getlink=True)
        where = f"{group.name.rstrip('/')}/{name}"
        if isinstance(link, h5py.ExternalLink):
            raise HostileFile(f"{path}: {where} is a link to another file ({link.filename}); links out are not followed")
        if isinstance(link, h5py.SoftLink):
            continue
        item = group[name]
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise HostileFile(f"{path}: the data of {where} lie in another file; only data inside the file are read")
        elif isinstance(item, h5py.Group):
            address = h5py.h5o.get_info(item.id).addr
            if address not in seen:
                seen.add(address)
                _refuse_external(path, item, seen)
