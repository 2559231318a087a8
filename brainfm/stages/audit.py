"""audit: the leakage check over every model and result of a wiring; it fails the run."""

from pathlib import Path

from brainfm import config
from brainfm.audit import audit
from brainfm.evaluations.tasks import write_result


class LeakageError(RuntimeError):
    """Something on the test side stands on the training side too."""


def run(key: str, root: Path = Path()) -> None:
    """Audit the wiring `key` and write data/results/audit/<key>.json.

    Raises:
        LeakageError: with every leak that was found.
    """
    wired = config.wiring("audit", key, root / "configs")
    models, results = model_paths(root, key), result_paths(root, key)
    checks = audit(root / wired["shards"], models, results)
    leaks = [f"{leak} ({check.what})" for check in checks for leak in check.leaks]
    for check in checks:
        print(f"  {'LEAK' if check.leaks else 'ok  '} {check.what} ({check.pairs} pairs)")
    write_result(root / f"data/results/audit/{key}.json", {"passed": not leaks, "checks": [vars(c) for c in checks]})
    if leaks:
        raise LeakageError(f"audit {key} found {len(leaks)} leaks\n" + "\n".join(f"  {leak}" for leak in leaks))


def model_paths(root: Path, key: str) -> list[Path]:
    """Folders of the models and tokenizers that the wiring `key` trains."""
    named = [name for stage in ("tokenize", "pretrain") for name in config.keys(stage, key, root / "configs")]
    return [root / "data/models" / name for name in named]


def result_paths(root: Path, key: str) -> list[Path]:
    """Result files of the wiring `key`, decoding first."""
    stages = ("decode", "transfer")
    return [
        root / "data/results" / s / f"{name}.json" for s in stages for name in config.keys(s, key, root / "configs")
    ]
