"""Linear maps over channels as matrices `(channel out, channel in)`: new references, and bad channels interpolated.

A matrix is applied to a lazy signal piece by piece: `matrix @ signal[:, a:b]`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from brainfm.recording import ChannelNote, Channels

if TYPE_CHECKING:
    import mne

#: Kinds that measure a potential against a reference.
POTENTIALS = ("eeg", "ecog", "seeg")

#: Kinds that measure a magnetic field.
MEG = ("mag", "grad", "axial")

#: Good channels with a position that interpolation needs.
FEWEST = 4

#: Centre of a head in the head frame, m, and radii that a sphere through a head's electrodes can have. Electrodes on a
#: line or in a small patch fit spheres of any size.
CENTRE = (0.0, 0.0, 0.04)
RADII = (0.06, 0.13)


def reference_matrix(channels: Channels, to: str | Sequence[str]) -> tuple[np.ndarray, Channels]:
    """Matrix that measures potentials against another reference, and the channel table with it written down.

    Bad channels are measured anew too, but are no part of an average. A single electrode that is made the reference
    is zero from then on.

    Args:
        channels: the table; its other kinds stay as they are.
        to: "average" for the mean of the good channels of each kind of `POTENTIALS` by itself, or one name or several
            of channels of one kind, whose mean is the reference of that kind (linked mastoids: `["M1", "M2"]`).

    Raises:
        ValueError: for a name that is not in the table or is bad, and for bipolar leads or other channels that do not
            share a reference now, since no common reference can be had from them.
    """
    matrix, reference = np.eye(len(channels)), list(channels.reference)
    if to == "average":
        sources = {k: _rows(channels, k, good=True) for k in POTENTIALS if k in channels.kind}
        if not sources:
            raise ValueError(f"no channel is of the kinds {', '.join(POTENTIALS)}; others have no average reference")
        word = "average"
    else:
        names = [to] if isinstance(to, str) else list(to)
        rows = [_row(channels, name) for name in names]
        kinds = {channels.kind[row] for row in rows}
        if len(kinds) != 1 or not kinds <= set(POTENTIALS):
            raise ValueError(
                f"the reference {', '.join(names)} has channels of the kinds {', '.join(sorted(kinds)) or 'none'}; "
                f"expected one of {', '.join(POTENTIALS)}"
            )
        sources, word = {kinds.pop(): rows}, "+".join(channels.name[row] for row in rows)
    for kind, rows in sources.items():
        targets = _rows(channels, kind)
        if to == "average" and len(rows) < 2:
            raise ValueError(f"{len(rows)} of {len(targets)} {kind} channels are good; an average needs two or more")
        now = {channels.reference[row] for row in targets}
        if len(now) > 1 or any(channels.placed[row] == "midpoint" for row in targets):
            raise ValueError(
                f"{kind} channels are measured against different references ({', '.join(sorted(map(repr, now)))}), as "
                "bipolar leads are; no common reference can be had from them: leave the reference as it is"
            )
        matrix[np.ix_(targets, rows)] -= 1 / len(rows)
        for row in targets:
            reference[row] = word
    table = channels.pick(np.arange(len(channels)))
    table.reference = reference
    return matrix, table


def _rows(channels: Channels, kind: str, good: bool = False) -> list[int]:
    return [i for i, k in enumerate(channels.kind) if k == kind and not (good and channels.bad[i])]


def _row(channels: Channels, name: str) -> int:
    """The channel that a reference's name means, whatever its spelling."""
    from brainfm.modalities import electrodes

    plain = {other.lower(): row for row, other in enumerate(channels.name)}
    row = plain.get(name.lower(), plain.get(electrodes.plain(name)))
    if row is None:
        near = difflib.get_close_matches(name, channels.name, 1, 0.0)
        raise ValueError(
            f"the reference {name!r} is not among the {len(channels)} channels; did you mean {near[0]!r}?"
            if near
            else f"the reference {name!r} is not among the channels: there are none"
        )
    if channels.bad[row]:
        raise ValueError(f"the reference {channels.name[row]} is a bad channel; choose another or 'average'")
    return row


def interpolation_matrix(channels: Channels) -> tuple[np.ndarray, Channels, list[ChannelNote]]:
    """Matrix that puts what the good channels say in place of the bad ones, the table with these good, and notes.

    EEG by spherical splines and MEG by a minimum-norm estimate, both as MNE does them. The EEG matrix is exactly MNE's
    where the sphere is fitted to the electrodes of the table, and not to a digitised head besides. The table has no
    size and no second axis of a coil: magnetometers are taken as points, axial gradiometers as CTF's of 5 cm baseline,
    and planar ones as lying across the line to the centre of the head. So the MEG matrix is close to MNE's with the
    file's own coils, and equal for point magnetometers.

    A bad channel stays bad, with a note, if its position is unknown, if it is a bipolar lead, or if it is of a kind for
    which there is no interpolation (implanted electrodes).

    Raises:
        ValueError: where fewer than four good channels with a position are there to interpolate from.
    """
    matrix, table = np.eye(len(channels)), channels.pick(np.arange(len(channels)))
    table.bad = channels.bad.copy()
    notes = []
    placed = np.isfinite(channels.position).all(axis=1) & np.array([p != "midpoint" for p in channels.placed], bool)
    turned = channels.orientation.any(axis=1) | np.array([kind not in MEG for kind in channels.kind], bool)
    placed &= turned
    for kinds in (("eeg",), MEG):
        rows = np.array([i for i, k in enumerate(channels.kind) if k in kinds and placed[i]], int)
        bad = rows[channels.bad[rows]]
        if not len(bad):
            continue
        if len(rows) - len(bad) < FEWEST:
            raise ValueError(
                f"{len(bad)} bad of {len(rows)} {'/'.join(kinds)} channels with a position; interpolation needs at "
                f"least {FEWEST} good ones: drop the bad channels instead, or give a montage"
            )
        matrix[np.ix_(bad, rows)] = _interpolated(channels.pick(rows))[channels.bad[rows]]
        table.bad[bad] = False
        how = "spherical splines" if kinds == ("eeg",) else "minimum norm"
        for row in bad:
            said = f"{how} over {len(rows) - len(bad)} channels"
            notes.append(ChannelNote(channels.name[row], channels.name[row], "interpolated", said))
    for row in np.flatnonzero(table.bad):
        kind, name = channels.kind[row], channels.name[row]
        why = f"there is none for {kind} channels"
        if kind in ("eeg", *MEG):
            why = "a bipolar lead" if channels.placed[row] == "midpoint" else "its place is unknown"
        notes.append(ChannelNote(name, name, "bad", f"not interpolated: {why}"))
    return matrix, table, notes


def _interpolated(channels: Channels) -> np.ndarray:
    """MNE's interpolation of placed channels of EEG or of MEG as a matrix: what it makes of the identity matrix."""
    import mne

    names = [f"{i:04d}" for i in range(len(channels))]
    kinds = ["mag" if kind == "axial" else kind for kind in channels.kind]
    info = mne.create_info(names, 1000.0, kinds, verbose="error")
    if "eeg" in kinds:
        place = dict(zip(names, channels.position, strict=True))
        info.set_montage(mne.channels.make_dig_montage(place, coord_frame="head"), verbose="error")
    else:
        set_coils(info, channels)
    info["bads"] = [name for name, bad in zip(names, channels.bad, strict=True) if bad]
    raw = mne.io.RawArray(np.eye(len(names)), info, verbose="error")
    origin = np.array(CENTRE)
    if "eeg" in kinds:
        radius, centre, _ = mne.bem.fit_sphere_to_headshape(info, units="m", verbose="error")
        origin = centre if RADII[0] < radius < RADII[1] else origin
    return raw.interpolate_bads(origin=origin, verbose="error").get_data()


def set_coils(info: mne.Info, channels: Channels) -> None:
    """Write position, axes and type of each coil into an MNE measurement whose device lies in the head frame."""
    import mne
    from mne.io.constants import FIFF

    coils = {"mag": FIFF.FIFFV_COIL_POINT_MAGNETOMETER, "grad": FIFF.FIFFV_COIL_VV_PLANAR_T1,
             "axial": FIFF.FIFFV_COIL_CTF_GRAD}  # fmt: skip
    for channel, kind, place, axis in zip(
        info["chs"], channels.kind, channels.position, channels.orientation, strict=True
    ):
        # Of a planar gradiometer the table has the axis of the gradient, of the others the normal of the coil.
        if kind == "grad":
            normal = place - np.array(CENTRE)
            normal = normal - (normal @ axis) * axis
            normal /= np.linalg.norm(normal)
            along = axis
        else:
            normal = axis
            along = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
            along /= np.linalg.norm(along)
        channel["loc"] = np.concatenate([place, along, np.cross(normal, along), normal])
        channel["coil_type"] = coils[kind]
        channel["coord_frame"] = FIFF.FIFFV_COORD_DEVICE
    info["dev_head_t"] = mne.Transform("meg", "head", np.eye(4))
