"""ingest: a dataset's files, or any recordings at a path → one shard per subject, and the split beside them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from brainfm import catalog, checksums, config, splits
from brainfm.shards.ingest import Ingested, Unit, ingest

BLOCKS = ("recordings", "split")

#: Code that decides the bytes of a shard, beside that of datasets: where it changes, recordings are made again.
CODE = ("modalities", "readers", "shards", "recording.py", "hdf.py", "checksums.py")


class IngestError(RuntimeError):
    """Some recordings could not be ingested; the others were."""


def is_path(what: str) -> bool:
    """Whether a word of the command line names recordings on disk rather than a dataset of the catalogue."""
    return what not in catalog.names("datasets") and (Path(what).exists() or any(c in what for c in "/\\."))


def run(
    key: str, seed: int, jobs: int | None = None, corpus: str | None = None, scheduler: str | None = None,
    dtype: str = "float32", root: Path = Path(),
) -> Ingested:  # fmt: skip
    """Ingest dataset `key`; its files must have been fetched.

    Raises:
        IngestError: with a line per recording that failed, after all others are done.
    """
    settings = config.stage_config("ingest", key, BLOCKS, root / "configs")
    dataset = catalog.load("datasets", key)
    raw = root / "data/raw" / key
    if not raw.exists():
        raise FileNotFoundError(
            f"{raw} is absent; run `brainfm fetch {key}` first (with `--from FOLDER` for a local copy)"
        )
    where = f"configs/ingest/{key}.yaml"
    keywords = config.keywords(dataset.recordings, settings["recordings"], f"{where}: recordings", ("root", "subjects"))
    split = config.keywords(splits.assign, settings["split"], f"{where}: split", ("recordings",))
    corpus = corpus or config.wiring("ingest", key, root / "configs")["corpus"]
    out = root / "data/shards" / corpus / key
    units = units_of(dataset.recordings, dataset.sources(raw), raw, keywords)
    done = ingest(
        units, out, dataset.CARD, [keywords, _code(Path(str(dataset.__file__)))], split, jobs=jobs, seed=seed,
        scheduler=scheduler, dtype=dtype,
    )  # fmt: skip
    return _said(key, done, out)


def units_of(
    recordings: Callable[..., Any], sources: dict[str, list[Path]], raw: Path, keywords: dict[str, Any]
) -> list[Unit]:
    """A dataset's recordings as units of work, by its two functions and the keywords of its configuration."""
    return [
        Unit(key, tuple(files), partial(recordings, raw, subjects=[key], **keywords)) for key, files in sources.items()
    ]


def run_path(
    path: Path, out: Path | None, said: dict[str, Any], given: dict[str, float | None], steps: Path | None,
    split: dict[str, Any] | None, card: dict[str, str], seed: int, jobs: int | None = None,
    scheduler: str | None = None, dtype: str = "float32",
) -> Ingested:  # fmt: skip
    """Ingest the recordings at `path`: a file, a folder, or a BIDS dataset.

    Args:
        path: what to read. out: folder of the shards; data/shards/<name of the dataset> where None.
        said: keywords of `collection.find`. given: filters, by the words of `local_files.WORDS`.
        steps: a YAML file with a list of cleaning `steps`, in place of the filters.
        split: keywords of `splits.assign`; None holds out people where there are five or more.
        card: licence and citation, as far as the user knows.
        seed, jobs, scheduler, dtype: as in `ingest`.

    Raises:
        IngestError: as in `run`.
    """
    from brainfm.datasets import local_files
    from brainfm.modalities import cleaning
    from brainfm.readers import collection

    declared = None
    if steps:
        said_steps = config.read(steps)
        config.check_blocks(said_steps, ("steps",), str(steps))
        declared = said_steps.get("steps") or []
        cleaning.check(declared)
    found = collection.find(path, **said)
    people = {item.key.split("/")[0] for item in found.items}
    print(f"{path}: {len(found.items)} recordings of {len(people)} people")
    for note in found.notes:
        print(f"  {note}")
    if split is None:
        split = {"test_subjects": 0.2, "val_subjects": 0.1} if len(people) >= 5 else {"everyone": "train"}
        print(f"  split: {split} by default; say --test-subjects and --val-subjects for another")
    units = [Unit(i.key, i.files, local_files.maker(i, given, declared), i.request) for i in found.items]
    out = out or Path("data/shards") / found.dataset
    done = ingest(
        units,
        out,
        card,
        [given, declared, _code()],
        split,
        jobs=jobs,
        seed=seed,
        scheduler=scheduler,
        dtype=dtype,
        whole=False,
    )
    return _said(found.dataset, done, out)


def _said(name: str, done: Ingested, out: Path) -> Ingested:
    """Print what happened; raise where something failed."""
    print(
        f"ingest {name}: {len(done.written)} recordings written, {len(done.kept)} kept, {len(done.failed)} failed; "
        f"shards in {out}"
    )
    if done.failed:
        lines = "\n".join(f"  {key}: {why}" for key, why in sorted(done.failed.items()))
        total = len(done.written) + len(done.kept) + len(done.failed)
        raise IngestError(f"{name}: {len(done.failed)} of {total} recordings failed, the others are in {out}\n{lines}")
    return done


def _code(*own: Path) -> str:
    """Hash of the code that decides a shard's bytes: `CODE`, a dataset's own file, and what datasets share."""
    shared = [f for f in (catalog.PACKAGE / "datasets").glob("*.py") if "CARD" not in catalog.defined(f)]
    return checksums.of_code([*own, *shared, *(catalog.PACKAGE / part for part in CODE)])
