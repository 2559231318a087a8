"""Who was recorded in which file: from a table, from a pattern, or from the names of the files.

A wrong answer puts one person on both sides of a split. So what is derived is said in words, and what is not clear is
an error that shows how to say it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

#: Meaning → names of a table's columns, in lower case.
COLUMNS = {
    "file": ("file", "filename", "file_name", "path"),
    "subject": ("subject", "participant_id", "participant", "subject_id", "sub"),
    "session": ("session", "session_id", "ses"),
    "run": ("run",),
    "label": ("label", "condition", "task"),
}

#: Words that name a condition or a part of a session; they never stand for a person.
_CONDITION = (
    "rest", "task", "open", "closed", "eyes", "eyesopen", "eyesclosed", "pre", "post", "baseline", "left", "right",
    "eeg", "meg", "ieeg", "ecog", "seeg", "bold", "raw", "data", "rec", "recording", "run", "session", "ses", "trial",
    "block", "day", "visit", "part", "test", "train", "arithmetic", "oddball", "ssvep", "sleep", "wake",
)  # fmt: skip

#: Words before a number that counts sessions or their parts.
_PART = ("rec", "recording", "run", "session", "ses", "trial", "block", "day", "visit", "part", "test")

#: A word that says that a number is a person's.
_PERSON = re.compile(r"(sub|subj|subject|s|p|pat|patient|participant|person|proband|vp|pp|id|n)? ?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Ids:
    """Ids of one recording, and what a table says about it and its subject."""

    subject: str
    session: str = ""
    run: str = ""
    label: str = ""
    participant: dict[str, str] = field(default_factory=dict)


def rows(path: Path) -> dict[int, dict[str, str]]:
    """Rows of a TSV or CSV file: line of the file → column → text, "" for "n/a" and for cells that are not there.

    Raises:
        ValueError: for another encoding than UTF-8, a repeated column or a row with more cells than columns.
    """
    found: dict[int, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            tab = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
            reader = csv.DictReader(file, delimiter=tab, restkey="", restval="")
            names = [(name or "").strip() for name in reader.fieldnames or []]
            if repeated := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{path}: column {repeated[0]!r} stands twice; rename one of them")
            reader.fieldnames = names
            for row in reader:
                if isinstance(row.get(""), list):
                    raise ValueError(
                        f"{path} line {reader.line_num}: {len(names) + len(row[''])} cells for {len(names)} columns; "
                        "expected one for each: quote cells that hold the separator"
                    )
                cells = {name: (text or "").strip() for name, text in row.items()}
                found[reader.line_num] = {k: "" if v.lower() == "n/a" else v for k, v in cells.items()}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table ({error}); save it as CSV or TSV") from error
    return found


def participant(row: dict[str, str]) -> dict[str, str]:
    """What a row says about a person: every filled column that is no id, in lower case, "gender" as "sex"."""
    ids = {name for names in COLUMNS.values() for name in names}
    said = {re.sub(r"\s+", "_", name.lower()): text for name, text in row.items() if text and name.lower() not in ids}
    if "gender" in said and "sex" not in said:
        said["sex"] = said.pop("gender")
    return said


def clean(word: str) -> str:
    """An id of letters, digits, "-" and "_"; everything else becomes "-"."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-")


def entities(name: str) -> dict[str, str]:
    """The entities of a BIDS-like name: "sub-01_task-rest_eeg" → {"sub": "01", "task": "rest"}."""
    pairs = (part.split("-", 1) for part in name.split(".")[0].split("_"))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def run_id(parts: dict[str, str]) -> str:
    """The run's id from entities: task, run, and what else tells recordings of one session apart."""
    names = ("task", "run", "acq", "recording", "dir", "echo", "proc")
    return clean("-".join(parts[name] for name in names if parts.get(name)))


def assign(stems: Sequence[str], subject: str | None, table: Path | None, strict: bool) -> tuple[list[Ids], list[str]]:
    """Ids of each of the files, and notes on where they come from.

    Args:
        stems: names of the files without their suffixes, with folders, relative to the collection ("S01/rest").
        subject: a pattern ("Subject{subject}_{session}"), or the id of all files. table: rows about files or subjects.
        strict: whether the table has to fit; one that was found and not given may be about something else.

    Raises:
        ValueError: where names do not say who was recorded, or two files get the same ids.
    """
    about = rows(table) if table else {}
    notes: list[str] = []
    if table and (column := _column(about, "file")):
        found, how = _from_files(stems, about, column, table, notes), table.name
    elif subject:
        found, how = _join(_from_pattern(stems, subject), about, table, notes), f"--subject {subject!r} and file names"
    else:
        by_row = [] if all(map(_is_bids, stems)) else _from_rows(stems, about, table)
        found, how = (by_row, f"{table.name} and file names" if table else "") if by_row else _from_names(stems)
        if table and strict and not any(_row_of(i.subject, _people(about, table)) for i in found):
            raise ValueError(
                f"{table}: no file is named after one of its subjects ({some(list(_people(about, table)))}; files are "
                f"{some(stems)}); add a column `file`, or give --subject"
            )
        found = _join(found, about, table, notes)
    _refuse_collisions(stems, found)
    people = len({ids.subject for ids in found})
    said = f"{_count(people, 'person', 'people')} and {_count(len(found), 'recording', 'recordings')} from {how}"
    like = f"such as {PurePosixPath(stems[0]).name} ({_ids(found[0])})"
    return found, [f"{said} {like}; give --subject or --table if that is wrong", *notes]


def _ids(found: Ids) -> str:
    """The ids of a file that are known, in words."""
    return ", ".join(f"{word} {name!r}" for word in ("subject", "session", "run") if (name := getattr(found, word)))


def _column(about: dict[int, dict[str, str]], meaning: str) -> str:
    """The table's own name of the column that means this, or ""."""
    names = next(iter(about.values()), {})
    return next((name for known in COLUMNS[meaning] for name in names if name.lower() == known), "")


def _said(about: dict[int, dict[str, str]], row: dict[str, str], meaning: str) -> str:
    return row.get(_column(about, meaning), "") if _column(about, meaning) else ""


def _from_files(
    stems: Sequence[str], about: dict[int, dict[str, str]], column: str, table: Path, notes: list[str]
) -> list[Ids]:
    """Ids from a table with one row per file; every file needs a row."""
    if not _column(about, "subject"):
        raise ValueError(f"{table} names files and no subjects; add a column `subject`")
    found: list[Ids | None] = [None] * len(stems)
    absent = []
    for line, row in about.items():
        name = row[column].replace("\\", "/").removeprefix("./")
        hits = [i for i, stem in enumerate(stems) if name and _names(name, stem)]
        if len(hits) > 1:
            raise ValueError(
                f"{table} line {line}: {name!r} fits {some([stems[i] for i in hits])}; write its folder too"
            )
        if not hits:
            absent += [name or f"line {line}"]
            continue
        who = clean(_said(about, row, "subject").removeprefix("sub-"))
        if not who:
            raise ValueError(f"{table} line {line}: {name!r} has no subject; fill in the column")
        session, run = (clean(_said(about, row, what)) for what in ("session", "run"))
        run = run or ("" if session else clean(PurePosixPath(stems[hits[0]]).name))
        found[hits[0]] = Ids(who, session, run, _said(about, row, "label"), participant(row))
    if missing := [stem for stem, ids in zip(stems, found, strict=True) if ids is None]:
        raise ValueError(f"{table} has no row for {some(missing)}; add the rows, or move these files away")
    if absent:
        notes.append(f"{len(absent)} rows of {table.name} name files that are not here: {some(absent)}")
    return [ids for ids in found if ids is not None]


def _names(name: str, stem: str) -> bool:
    """Whether a table's `name`, with or without folder and suffix, is the file of this stem."""
    last = PurePosixPath(stem).name
    return any(n == s or n.startswith(f"{s}.") for n, s in ((name, stem), (name, last)) if s)


def _people(about: dict[int, dict[str, str]], table: Path | None) -> dict[str, dict[str, str]]:
    """Subject → its row, of a table with one row per subject."""
    found: dict[str, dict[str, str]] = {}
    if not (column := _column(about, "subject")):
        return found
    for line, row in about.items():
        who = clean(row[column].removeprefix("sub-"))
        if who in found:
            raise ValueError(
                f"{table} line {line}: subject {who!r} has a row already; add a column `file`, or merge them"
            )
        if who:
            found[who] = row
    return found


def _from_rows(stems: Sequence[str], about: dict[int, dict[str, str]], table: Path | None) -> list[Ids]:
    """Ids of files that are named after the table's subjects; none where no file is.

    Raises:
        ValueError: where some files are and others are not.
    """
    people = sorted(_people(about, table), key=len, reverse=True)
    found, others = [], []
    for stem in stems:
        parts = stem.split("/")
        hits = [
            (who, depth)
            for who in people
            for depth, part in enumerate(parts)
            if re.match(rf"(sub-)?{re.escape(who)}(?![A-Za-z0-9])", part)
        ]
        if not hits:
            others.append(stem)
            continue
        who, depth = hits[0]
        rest = [re.sub(rf"^(sub-)?{re.escape(who)}", "", parts[depth]), *parts[:depth], *parts[depth + 1 :]]
        found.append(Ids(who, run=clean("_".join(word.strip("_- ") for word in rest if word)).strip("_")))
    if found and others:
        raise ValueError(
            f"{table} names the subjects of {len(found)} files and not those of {some(others)}; add their rows, or "
            "give --subject with a pattern such as 'Subject{subject}_{session}'"
        )
    return found


def _join(found: list[Ids], about: dict[int, dict[str, str]], table: Path | None, notes: list[str]) -> list[Ids]:
    """The ids with what a table with one row per subject says about each."""
    people = _people(about, table)
    if not table or not people:
        return found
    row_of = {ids.subject: _row_of(ids.subject, people) for ids in found}
    if lost := sorted(who for who, row in row_of.items() if not row):
        notes.append(f"{table.name} says nothing about {some(lost)}")
    if more := sorted(set(people) - set(row_of.values())):
        notes.append(f"{len(more)} rows of {table.name} are about people who are not here: {some(more)}")
    out = []
    for ids in found:
        row = people.get(row_of[ids.subject], {})
        session, run, label = (_said(about, row, what) for what in ("session", "run", "label"))
        out.append(
            replace(
                ids, session=ids.session or clean(session), run=ids.run or clean(run), label=ids.label or label,
                participant=participant(row),
            )
        )  # fmt: skip
    return out


def _row_of(subject: str, people: Iterable[str]) -> str:
    """The id by which a table calls a subject: the same, or the same with a word before it ("00", "Subject00")."""
    same = [who for who in people if who == subject]
    return (same or [who for who in people if re.fullmatch(rf"[A-Za-z_-]*{re.escape(subject)}", who)] or [""])[0]


def _from_pattern(stems: Sequence[str], pattern: str) -> list[Ids]:
    """Ids from a pattern with {subject}, {session}, {run}, {label} and *, or one id for all files."""
    if not re.search(r"[{}*]", pattern):
        who = clean(pattern)
        return [Ids(who, run=clean(stem.replace("/", "_"))) for stem in stems]
    if "{subject}" not in pattern:
        raise ValueError(f"--subject {pattern!r} says not where the subject stands; write {{subject}} there")
    regex, seen = "", set()
    for piece in re.split(r"(\{[^}]*\}|\*)", pattern):
        if piece == "*":
            regex += "([^/]*)"
        elif piece.startswith("{"):
            name = piece[1:-1]
            if name not in ("subject", "session", "run", "label"):
                raise ValueError(
                    f"--subject {pattern!r}: unknown field {piece}; expected {{subject}}, {{session}}, {{run}} or "
                    "{label}"
                )
            regex += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
            seen.add(name)
        else:
            regex += re.escape(piece)
    found, others = [], []
    for stem in stems:
        match = re.fullmatch(regex, stem if "/" in pattern else PurePosixPath(stem).name)
        if match is None:
            others.append(stem)
            continue
        named = match.groupdict()
        places = set(match.re.groupindex.values())
        wild = [text for i, text in enumerate(match.groups(), 1) if i not in places and text]
        run = named.get("run") or "-".join(wild)
        found.append(
            Ids(clean(named["subject"]), clean(named.get("session") or ""), clean(run), named.get("label") or "")
        )
    if others:
        raise ValueError(
            f"--subject {pattern!r} fits {len(found)} of {len(stems)} files and not {some(others)}; expected a "
            "pattern that fits the whole of every name without its suffix"
        )
    return found


def _is_bids(stem: str) -> bool:
    return bool(re.match(r"sub-[A-Za-z0-9]+(_|$)", PurePosixPath(stem).name))


def _from_names(stems: Sequence[str]) -> tuple[list[Ids], str]:
    """Ids from names alone (BIDS-like ones, folders of people, or what the names have in common), and from which."""
    names = [PurePosixPath(stem).name for stem in stems]
    if others := [stem for stem in stems if not _is_bids(stem)]:
        if len(others) < len(stems):
            count = len(stems) - len(others)
            raise ValueError(f"{count} files have BIDS-like names and {some(others)} have not; {_MEND}")
        return (_from_folders(stems), "folders") if any("/" in s for s in stems) else (_from_stems(names), "file names")
    found = [entities(name) for name in names]
    return [Ids(clean(e["sub"]), clean(e.get("ses", "")), run_id(e)) for e in found], "BIDS-like file names"


_MEND = "give --subject with a pattern such as 'Subject{subject}_{session}' or '*/{subject}', or --table"


def _from_folders(stems: Sequence[str]) -> list[Ids]:
    """Subject from the first folder where all first folders are named after people; session from the second."""
    parts = [stem.split("/") for stem in stems]
    others = [stem for stem, p in zip(stems, parts, strict=True) if len(p) < 2 or not _PERSON.fullmatch(p[0])]
    if others:
        raise ValueError(f"the folders of {some(others)} do not say who was recorded; {_MEND}")
    deep = all(len(p) > 2 for p in parts)
    return [Ids(clean(p[0]), clean(p[1]) if deep else "", clean("_".join(p[2 if deep else 1 :]))) for p in parts]


def _from_stems(stems: Sequence[str]) -> list[Ids]:
    """Subject from the name up to the first "_" or "-" after which only the recordings of one person differ."""
    parts = [re.split(r"([_-])", stem) for stem in stems]
    if all(len(p) == 1 for p in parts):
        glued = [re.fullmatch(r"([A-Za-z]+\d+)([A-Za-z]+\d+)", stem) for stem in stems]
        if not all(glued):
            words = [stem for stem in stems if len(stems) > 1 and _letters(stem) in _CONDITION]
            if any(glued) or words:
                raise ValueError(f"{some(words or stems)} may be names of conditions and not of people; {_MEND}")
            return [Ids(clean(stem)) for stem in stems]
        parts = [[m[1], "", m[2]] for m in glued if m]
    lead = 1
    while len({tuple(p[:lead]) for p in parts}) == 1 and not _PERSON.fullmatch("".join(parts[0][lead - 1])):
        if min(len(p) for p in parts) <= lead:
            break
        lead += 2
    heads, tails = ["".join(p[:lead]) for p in parts], ["".join(p[lead + 1 :]) for p in parts]
    last = [p[lead - 1] for p in parts if len(p) >= lead]
    if not all(tails) and any(tails):
        others = [stem for stem, tail in zip(stems, tails, strict=True) if not tail]
        raise ValueError(f"some file names have a part after the subject, {some(others)} have not; {_MEND}")
    named = all(map(_PERSON.fullmatch, last))
    if len(stems) == 1 and not named:
        return [Ids(clean(stems[0]))]
    counted = [stem for stem, p in zip(stems, parts, strict=True) if {_letters(w) for w in p[:lead]} & set(_PART)]
    if counted and len(stems) > 1:
        raise ValueError(f"{some(counted)} count parts of a recording and not people; {_MEND}")
    numbered = all(re.search(r"\d", word) and _letters(word) not in _CONDITION for word in last)
    both = named and all(word.isdigit() for word in last) and len(set(heads)) < len(set(tails))
    if both or not (named or (numbered and (len(set(heads)) > len(set(tails)) or not any(tails)))):
        raise ValueError(f"names such as {some(stems)} do not say which part is the person; {_MEND}")
    return [Ids(clean(head), run=clean(tail)) for head, tail in zip(heads, tails, strict=True)]


def _letters(word: str) -> str:
    """The word without the digits around it, in lower case: "Rest02" → "rest"."""
    return word.strip("0123456789").lower()


def _refuse_collisions(stems: Sequence[str], found: list[Ids]) -> None:
    """Refuse ids that two recordings share, and empty subjects."""
    first: dict[tuple[str, str, str], str] = {}
    for stem, ids in zip(stems, found, strict=True):
        if not ids.subject:
            raise ValueError(f"{stem}: its subject's id is empty; ids need letters or digits: {_MEND}")
        key = (ids.subject.lower(), ids.session.lower(), ids.run.lower())
        if key in first:
            raise ValueError(
                f"{first[key]} and {stem} get the same ids (subject {ids.subject!r}, session {ids.session!r}, run "
                f"{ids.run!r}); name {{session}} or {{run}} in --subject, or columns of a table"
            )
        first[key] = stem


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def some(words: Sequence[str], count: int = 4) -> str:
    """The first of the words, and how many more there are."""
    more = f" and {len(words) - count} more" if len(words) > count else ""
    return ", ".join(words[:count]) + more
