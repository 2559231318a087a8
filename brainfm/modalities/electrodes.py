"""Where the electrodes of the 10-20 system and its extensions sit on a template head."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from brainfm.recording import Channels

if TYPE_CHECKING:
    import mne


@cache
def template() -> dict[str, np.ndarray]:
    """Electrode name → `(3,)` metres in the head frame (MNE's 10-05 template of the Colin 27 head)."""
    import mne

    known = mne.channels.get_builtin_montages()
    name = "colin27_1005" if "colin27_1005" in known else "standard_1005"
    montage = mne.channels.montage.transform_to_head(mne.channels.make_standard_montage(name))
    return montage.get_positions()["ch_pos"]


def named(names: list[str]) -> Channels:
    """A table of EEG channels from their names; "EEG Fp1-REF" and other spellings find their place too.

    Names that the template does not know keep an unknown position.
    """
    known = {name.lower(): place for name, place in template().items()}
    unknown = np.full(3, np.nan)
    position = [known.get(plain(name), unknown) for name in names]
    return Channels.make(names, "eeg", np.array(position).reshape(-1, 3))


def plain(name: str) -> str:
    """A channel's name as the template spells it, in lower case: "EEG Fp1-REF" → "fp1", "T7." → "t7"."""
    name = name.strip().lower().removeprefix("eeg").strip(" .:_")
    for ending in ("-ref", "-le", "-avg", "-a1", "-a2", "-m1", "-m2", "-cz"):
        name = name.removesuffix(ending) or name
    return name.strip(" .")


def from_info(info: mne.Info) -> tuple[Channels, np.ndarray]:
    """Channel table of the EEG and MEG channels of an MNE measurement, and their picks.

    Positions are the file's, in the head frame; an EEG channel without one takes the template's for its name.

    Raises:
        ValueError: where there is no EEG or MEG channel.
    """
    import mne

    picks = mne.pick_types(info, meg=True, eeg=True, ref_meg=False, exclude=[])
    if not len(picks):
        raise ValueError(f"no EEG or MEG channel among {', '.join(info['ch_names'][:8])}; set their types first")
    kinds, position, orientation = [], np.full((len(picks), 3), np.nan), np.zeros((len(picks), 3))
    names = [info["ch_names"][p] for p in picks]
    to_head = None if info["dev_head_t"] is None else info["dev_head_t"]["trans"]
    by_name = named(names).position
    for row, pick in enumerate(picks):
        ch = info["chs"][pick]
        kind = mne.channel_type(info, pick)
        coil = str(ch["coil_type"])
        planar = "PLANAR" in coil
        kinds.append("eeg" if kind == "eeg" else "grad" if planar else "mag" if "MAG" in coil else "axial")
        place, axes = np.array(ch["loc"][:3]), np.array(ch["loc"][3:12]).reshape(3, 3)
        if kind == "eeg":
            usable = np.isfinite(place).all() and place.any()
            position[row] = place if usable else by_name[row]
        else:
            normal = axes[0] if planar else axes[2]
            turn = np.eye(3) if to_head is None else to_head[:3, :3]
            position[row] = turn @ place + (0 if to_head is None else to_head[:3, 3])
            orientation[row] = turn @ normal
    table = Channels.make(names, kinds, position, orientation)
    table.bad = np.isin(names, info["bads"])
    return table, picks
