"""ingest: a dataset's files → one shard per subject in data/shards/<corpus>/<key>, and the split beside them."""

import hashlib
from pathlib import Path

from brainfm import catalog, config, splits
from brainfm.shards.ingest import Ingested, ingest

BLOCKS = ("recordings", "split")


class IngestError(RuntimeError):
    """Some subjects could not be ingested; the others were."""


def run(key: str, seed: int, jobs: int | None = None, corpus: str | None = None, root: Path = Path()) -> Ingested:
    """Ingest dataset `key`; its files must have been fetched.

    Raises:
        IngestError: with a line per subject that failed, after all others are done.
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
    done = ingest(
        dataset.recordings, dataset.sources(raw), raw, keywords, out, dataset.CARD, _code(str(dataset.__file__)),
        split, jobs, seed,
    )  # fmt: skip
    print(f"ingest {key}: {len(done.written)} subjects written, {len(done.kept)} kept, {len(done.failed)} failed")
    if done.failed:
        lines = "\n".join(f"  {subject}: {why}" for subject, why in sorted(done.failed.items()))
        raise IngestError(
            f"{key}: {len(done.failed)} of {len(dataset.sources(raw))} subjects failed, "
            f"the others are in {out}\n{lines}"
        )
    return done


def _code(path: str) -> str:
    """Hash of the code that makes recordings: the dataset's file, what datasets share, and the modalities."""
    shared = [f for f in (catalog.PACKAGE / "datasets").glob("*.py") if "CARD" not in catalog.defined(f)]
    files = [Path(path), *sorted(shared), *sorted((catalog.PACKAGE / "modalities").glob("*.py"))]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
