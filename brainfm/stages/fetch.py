"""fetch: bring a dataset's files to data/raw/<key>, checked against their pinned checksums."""

from pathlib import Path

from brainfm import catalog


def run(key: str, local: Path | None = None, root: Path = Path()) -> None:
    """Fetch dataset `key`, from its source or from a local copy of the same files."""
    dataset = catalog.load("datasets", key)
    print(f"fetch {key}: {dataset.fetch(root / 'data/raw' / key, local)}")
