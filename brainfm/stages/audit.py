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
    models, results = model_paths(root / wired["models"]), result_paths(root, wired)
    checks = audit(root / wired["shards"], models, results)
    leaks = [f"{leak} ({check.what})" for check in checks for leak in check.leaks]
    for check in checks:
        print(f"  {'LEAK' if check.leaks else 'ok  '} {check.what} ({check.pairs} pairs)")
    write_result(root / f"data/results/audit/{key}.json", {"passed": not leaks, "checks": [vars(c) for c in checks]})
    if leaks:
        raise LeakageError(f"audit {key} found {len(leaks)} leaks\n" + "\n".join(f"  {leak}" for leak in leaks))


def model_paths(path: Path) -> list[Path]:
    """The model folder at `path`, or all model folders in it."""
    return [path] if (path / "config.json").exists() else sorted(p.parent for p in path.glob("[!.]*/config.json"))


def result_paths(root: Path, wired: dict) -> list[Path]:
    """Result files of the decode and transfer stages that a wiring names, files or folders."""
    found = []
    for stage in ("decode", "transfer"):
        path = root / wired[stage]
        found += [path] if path.is_file() else sorted(path.glob("[!.]*.json"))
    return found
