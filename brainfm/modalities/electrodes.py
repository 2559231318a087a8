"""What a channel's name says, and where its electrode sits: names of the 10-20 system and its extensions made alike.

`from_info` is the door of the channel contract for everything that MNE reads: kind, name, position, orientation,
reference and bad flag of each channel, and a line for each on what became of it.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from brainfm.recording import ChannelNote, Channels

if TYPE_CHECKING:
    import mne

#: The template that positions come from unless another is named: MNE's 10-05 electrodes on the Colin 27 head.
TEMPLATE = "colin27_1005"

#: Older names of electrodes of the 10-20 system, in lower case.
ALIASES = {"t3": "T7", "t4": "T8", "t5": "P7", "t6": "P8"}

#: Words after an electrode's name, in lower case → what the potential is measured against.
REFERENCES = {
    "ref": "REF", "le": "linked ears", "a1a2": "linked ears", "a12": "linked ears", "m1m2": "linked mastoids",
    "avg": "average", "ave": "average", "av": "average", "car": "average",
}  # fmt: skip

#: Electrodes on ears and mastoids: references, not recording sites.
EARS = ("A1", "A2", "M1", "M2")

#: Patterns of names, in lower case, of channels that are no brain signal whatever type their reader gave them.
OTHERS = {
    "heart": r"e[ck]g.*",
    "eyes": r"[a-z]?eog.*",
    "muscle": r".*emg.*",
    "trigger or status": r"status|sti\s?\d+|stim|trig.*|marker.*|event.*|([eb]df )?annotations|photic.*",
    "direct-current input": r"\$?dc\s?\d\d+",
    "breath or pulse": r"resp.*|sp[o0]2.*|sa[o0]2.*|pleth?.*|pulse.*|osat.*",
    "reference electrode": r"ref|gnd|ground|cms|drl",
}
#: As `OTHERS`, but these words also name contacts of implanted electrodes.
SCALP_OTHERS = {
    "eyes": r"[lr]oc|e[12]",
    "muscle": r"chin\d*",
    "direct-current input": r"dc\s?\d",
    "movement": r"acc.*|gyro.*|[xyz]([ _]?(dir|axis|acc))?",
    "breath or pulse": r"(air)?flow.*|snore.*|thor.*|abd.*|nasal.*|chest.*|effort.*|ibi",
    "auxiliary input": r"((right|left) )?aux.*|exg\s?\d+|gsr.*|eda|temp.*|erg(o.*|\d+)|bursts|suppr|battery|"
    r"counter|packet.*",
}


@dataclass(frozen=True)
class Lead:
    """What a channel's name says.

    Attributes:
        name: as the recording writes it.
        electrodes: the electrodes of the template that it names: one, two for a bipolar lead, none if unknown.
        reference: what it is measured against, "" where the name does not say.
    """

    name: str
    electrodes: tuple[str, ...] = ()
    reference: str = ""


@cache
def template(montage: str = TEMPLATE) -> dict[str, np.ndarray]:
    """Electrode name → `(3,)` metres in the head frame, of one of MNE's template montages.

    Raises:
        ValueError: for a montage that MNE does not have.
    """
    import mne

    known = mne.channels.get_builtin_montages()
    if montage == TEMPLATE and TEMPLATE not in known:
        montage = "standard_1005"
    if montage not in known:
        near = difflib.get_close_matches(montage, known, 1, 0.0)[0]
        raise ValueError(f"no template montage {montage!r}; did you mean {near!r}? There are {', '.join(known)}")
    placed = mne.channels.montage.transform_to_head(mne.channels.make_standard_montage(montage))
    return placed.get_positions()["ch_pos"]


def named(names: list[str], montage: str | None = None) -> Channels:
    """A table of EEG channels from their names alone, which are made alike: "EEG FP1-REF" → "Fp1", "T3" → "T7".

    Names that the template does not know keep an unknown position. None is dropped, and a name that comes up again
    gets a number: "Fp1-2".

    Args:
        names: as any file writes them.
        montage: the MNE template of the positions; `TEMPLATE` where None.
    """
    found = leads(names, montage)
    position, placed = _places(found, montage)
    distinct = _distinct([lead.name for lead in found])
    return Channels.make(distinct, "eeg", position, reference=[lead.reference for lead in found], placed=placed)


def plain(name: str) -> str:
    """A channel's name as `named` writes it, in lower case: "EEG Fp1-REF" → "fp1", "T3." → "t7"."""
    return leads([name])[0].name.lower()


def leads(names: list[str], montage: str | None = None) -> list[Lead]:
    """Read the names of the EEG channels of one file.

    They are read together, for "C3-Cz" is a bipolar lead in one file and C3 against Cz in another: a second electrode
    is the reference if it is on an ear or mastoid, or if every lead of the file ends in it, it is no channel itself,
    and it is Cz or there are three such leads.
    """
    spelling = _spelling(names, montage)
    found = [_lead(name, spelling) for name in names]
    pairs = [lead.electrodes for lead in found if len(lead.electrodes) == 2]
    seconds = {second for first, second in pairs if second not in EARS and first not in EARS}
    alone = {first for lead in found for first in lead.electrodes[:1]}
    common = seconds - alone if len(seconds) == 1 and (seconds == {"Cz"} or len(pairs) > 2) else set()
    for row, lead in enumerate(found):
        if len(lead.electrodes) == 2:
            first, second = lead.electrodes
            if first not in EARS and (second in EARS or second in common):
                found[row] = Lead(first, (first,), second)
    return found


def _spelling(names: list[str], montage: str | None) -> dict[str, str]:
    """Lower case → how an electrode is written. Letters that number an amplifier's inputs are no places on the head.

    A file with A3, B7 or D12 counts its inputs by banks of letters, and its C3 is not the C3 of the 10-20 system.
    """
    own = {} if montage is None else {name.lower(): name for name in template(montage)}
    ten_twenty = {name.lower(): name for name in template()} | ALIASES
    if numbered(names):
        ten_twenty = {} if own else {k: v for k, v in ten_twenty.items() if not re.fullmatch(r"[a-z]\d+", k)}
    return ten_twenty | {k: v for k, v in own.items() if k not in ALIASES or not ten_twenty}


def numbered(names: list[str]) -> bool:
    """Whether a file's channels are named by bank and number, as of amplifiers and depth electrodes (A3, B7, D12)."""
    bare = {re.split(r"[\s\-]", _bare(name).upper())[0] for name in names}
    return sum(bool(re.fullmatch(r"[ABDEGH]\d+", name)) for name in bare - {"A1", "A2", "E1", "E2"}) > 2


def _bare(found: str) -> str:
    """A name without what cannot be seen, the dots of fixed-width fields and the words EEG and POL before it."""
    text = unicodedata.normalize("NFKC", found)
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf")).strip(" .:_")
    return re.sub(r"^(eeg[ :_-]*|pol[ :_-]+)(?=[a-z])", "", text, flags=re.IGNORECASE) or "unnamed"


def _lead(found: str, spelling: Mapping[str, str]) -> Lead:
    """One name by itself; a second electrode is taken as half of a bipolar lead, for `leads` to decide."""
    bare = _bare(found)
    parts = [p for p in re.split(r"[\s\-–—−/:_+()]+", bare) if p]
    if len(parts) > 1 and parts[-1].isdigit() and parts[0].lower() in spelling:
        parts = parts[:-1]  # MNE numbers repeated labels, "Fp1-0" and "Fp1-1"; `_distinct` numbers them anew.
    known = [spelling.get(p.lower(), "") for p in parts]
    word = "".join(parts[1:]).lower()
    if known and known[0] and len(parts) == 1:
        return Lead(known[0], (known[0],))
    if known and known[0] and word in REFERENCES:
        return Lead(known[0], (known[0],), REFERENCES[word])
    if len(parts) == 2 and all(known):
        return Lead("-".join(known), (known[0], known[1]), known[1])
    return _unread(bare)


def _unread(bare: str) -> Lead:
    """A name that is no electrode of the template, but may still end in the word of a reference."""
    words = "|".join(map(re.escape, REFERENCES))
    match = re.fullmatch(rf"(.*[^\s\-:/_])[\s\-:/_]+({words})", bare, flags=re.IGNORECASE)
    return Lead(match[1], (), REFERENCES[match[2].lower()]) if match else Lead(bare)


def _contact(found: str) -> Lead:
    """The name of an implanted contact ("LA1", "POL RH12-REF", "LA1-LA2"), as the file writes it."""
    lead = _unread(_bare(found))
    match = re.fullmatch(r"[A-Za-z]+'?\d+\s*-\s*([A-Za-z]+'?\d+)", lead.name)
    return replace(lead, reference=match[1]) if match else lead


@cache
def _with_aliases(montage: str) -> dict[str, np.ndarray]:
    """A template with the newer names of electrodes that it has under older ones."""
    own = template(montage)
    older = {ALIASES[name.lower()]: place for name, place in own.items() if name.lower() in ALIASES}
    return older | own


def _places(found: list[Lead], montage: str | None) -> tuple[np.ndarray, list[str]]:
    """Position `(channel, 3)` of each lead on the template, NaN where it has none, and the word of `PLACED` for it."""
    known = _with_aliases(montage or TEMPLATE)
    position, placed = np.full((len(found), 3), np.nan), []
    for row, lead in enumerate(found):
        if lead.electrodes and all(e in known for e in lead.electrodes):
            position[row] = sum(known[e] for e in lead.electrodes) / len(lead.electrodes)
        placed.append("midpoint" if len(lead.electrodes) == 2 else "montage")
    return position, placed


def _distinct(names: list[str]) -> list[str]:
    """The same names, with a number behind those that came up before."""
    taken, last, out = set(names), dict.fromkeys(names, 0), []
    for name in names:
        new, last[name] = name, last[name] + 1
        while last[name] > 1 and (new := f"{name}-{last[name]}") in taken:
            last[name] += 1
        taken.add(new)
        out.append(new)
    return out


def from_info(
    info: mne.Info, montage: str | None = None, modality: str | None = None
) -> tuple[Channels, np.ndarray, list[ChannelNote]]:
    """Channel table of the EEG, MEG and implanted channels of an MNE measurement, their picks, and what became of each.

    Positions are the file's, in the head frame; an EEG channel without one takes the template's for its name. What is
    no brain signal is dropped, by its type or by its name.

    Args:
        info: of a Raw, Epochs or Evoked.
        montage: the MNE template of positions that the file does not have; `TEMPLATE` where None.
        modality: "ieeg" says that "eeg" channels are contacts of implanted electrodes, unless the file has some typed
            so; such channels never take a place from a template.

    Raises:
        ValueError: where no EEG, MEG or implanted channel is left, or for an unknown montage.
    """
    import mne

    types = [mne.channel_type(info, pick) for pick in range(len(info["ch_names"]))]
    implanted = {"seeg": "seeg", "dbs": "seeg", "ecog": "ecog"}
    if modality == "ieeg" and not set(types) & set(implanted):
        implanted["eeg"] = "seeg"
    scalp = [p for p, kind in enumerate(types) if kind == "eeg" and kind not in implanted]
    banks = numbered([info["ch_names"][p] for p in scalp])
    read = dict(zip(scalp, leads([info["ch_names"][p] for p in scalp], montage), strict=True))
    kinds, picks, notes = [], [], []
    for pick, (found, kind) in enumerate(zip(info["ch_names"], types, strict=True)):
        if kind in implanted:
            read[pick] = _contact(found)
            reason = _other(found, read[pick], OTHERS)
        elif kind == "eeg":
            counted = banks and re.fullmatch(r"[a-z]\d+", _bare(found), flags=re.IGNORECASE)
            reason = "" if counted else _other(found, read[pick], OTHERS | _both())
            if not counted and read[pick].electrodes and set(read[pick].electrodes) <= set(EARS):
                reason = "reference electrode" if len(read[pick].electrodes) == 1 else "between reference electrodes"
        else:
            read[pick] = Lead(found.strip("\0 ") or "unnamed")
            reason = "" if kind in ("mag", "grad") else f"{kind} channel"
        if reason:
            notes.append(ChannelNote(found, "", "dropped", reason))
        else:
            picks.append(pick)
            kinds.append(implanted.get(kind, kind) if kind in (*implanted, "eeg") else _coil(info["chs"][pick]))
    if not picks:
        some = ", ".join(f"{note.found} ({note.detail})" for note in notes[:8])
        raise ValueError(f"no EEG, MEG or implanted channel among {some or 'none'}; set the channels' types first")
    table, where = _table(info, picks, kinds, [read[p] for p in picks], montage)
    for row, pick in enumerate(picks):
        notes += _fate(info["ch_names"][pick], table, row, where[row])
    return table, np.array(picks), notes


def _both() -> dict[str, str]:
    """The patterns of `SCALP_OTHERS` under the words of `OTHERS`."""
    return {word: "|".join(filter(None, (OTHERS.get(word), more))) for word, more in SCALP_OTHERS.items()}


def _other(found: str, lead: Lead, patterns: Mapping[str, str]) -> str:
    """What a channel is, if its name says that it is no brain signal, else ""."""
    bare = _bare(found).lower()
    first = re.split(r"[\-/:_]", bare)[0].strip()
    for word, pattern in patterns.items():
        if not lead.electrodes and any(re.fullmatch(pattern, x) for x in (bare, first, lead.name.lower())):
            return f"{word}, by its name"
    return ""


def _coil(channel: Mapping) -> str:
    """Kind of an MEG channel: "grad" in T/m, else by its coil "mag" or "axial"."""
    from mne.io.constants import FIFF

    coil = str(channel["coil_type"])
    if "PLANAR" in coil or channel["unit"] == FIFF.FIFF_UNIT_T_M:
        return "grad"
    return "mag" if "MAG" in coil else "axial"


def _table(
    info: mne.Info, picks: list[int], kinds: list[str], found: list[Lead], montage: str | None
) -> tuple[Channels, list[str]]:
    """The channel table, and in words where each position came from."""
    from mne.io.constants import FIFF

    moved = np.eye(4) if info["dev_head_t"] is None else info["dev_head_t"]["trans"]
    unmoved = "" if info["dev_head_t"] is not None else "; the file has no head position, so in the device's frame"
    averaged = any(p["active"] and "average eeg reference" in p["desc"].lower() for p in info["projs"])
    position, orientation = np.full((len(picks), 3), np.nan), np.zeros((len(picks), 3))
    banks = numbered([x.name for x, k in zip(found, kinds, strict=True) if k == "eeg"]) and montage is None
    unknown = (
        "names number the inputs of an amplifier, give a montage" if banks else f"name not in {montage or TEMPLATE}"
    )
    on_template, placed = _places([x if k == "eeg" else Lead("") for x, k in zip(found, kinds, strict=True)], montage)
    where = []
    for row, (pick, kind) in enumerate(zip(picks, kinds, strict=True)):
        channel = info["chs"][pick]
        place, axes = np.array(channel["loc"][:3]), np.array(channel["loc"][3:12]).reshape(3, 3)
        usable = bool(np.isfinite(place).all() and place.any())
        if kind in ("mag", "grad", "axial"):
            if usable:
                position[row] = moved[:3, :3] @ place + moved[:3, 3]
                orientation[row] = moved[:3, :3] @ axes[0 if kind == "grad" else 2]
            placed[row] = "file"
            where.append("position from the file" + unmoved if usable else "no position in the file")
            continue
        near = usable and np.linalg.norm(place) < 0.5
        in_head = channel["coord_frame"] in (FIFF.FIFFV_COORD_HEAD, FIFF.FIFFV_COORD_UNKNOWN)
        says = "the file's position is not in the head frame" if usable and not in_head else "no position in the file"
        says = "the file's position is more than 0.5 m from the head" if usable and not near else says
        if near and in_head:
            position[row], placed[row] = place, "file"
            where.append("position from the file")
        elif np.isfinite(on_template[row]).all():
            position[row] = on_template[row]
            between = f"midpoint of {' and '.join(found[row].electrodes)}" if placed[row] == "midpoint" else "position"
            where.append(f"{between} from {montage or TEMPLATE}" + ("; " + says if usable else ""))
        else:
            where.append(says + (f", {unknown}" if kind == "eeg" else ""))
    reference = ["average" if averaged and k == "eeg" else x.reference for x, k in zip(found, kinds, strict=True)]
    names = _distinct([lead.name for lead in found])
    table = Channels.make(names, kinds, position, orientation, reference=reference, placed=placed)
    table.bad = np.isin([info["ch_names"][p] for p in picks], info["bads"])
    for row, lead in enumerate(found):
        if names[row] != lead.name:
            where[row] += f"; a channel before it is {lead.name} too"
    return table, where


def _fate(found: str, table: Channels, row: int, where: str) -> list[ChannelNote]:
    """What became of one channel: kept or renamed, and besides unplaced or bad."""
    name = table.name[row]
    notes = [ChannelNote(found, name, "kept" if name == found else "renamed", where)]
    if table.placed[row] == "unknown":
        notes.append(ChannelNote(found, name, "unplaced", where))
    if table.bad[row]:
        notes.append(ChannelNote(found, name, "bad", "marked bad in the file"))
    return notes
