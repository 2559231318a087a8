"""audit: the leakage check over every model and result of a wiring; it fails the run."""

from pathlib import Path

from brainfm import config
from brainfm.audit import Audit, audit
from brainfm.checksums import sha256
from brainfm.evaluations.tasks import write_result

#: Warnings, gaps and leaks of a check that are printed; the file has them all.
SHOWN = 20


class LeakageError(RuntimeError):
    """Something on one side of a split stands on the other side too."""


def run(key: str, root: Path = Path()) -> None:
    """Audit the wiring `key`, print what was checked and what could not be, and write data/results/audit/<key>.json.

    Raises:
        LeakageError: with the leaks that were found.
        FileNotFoundError: where a model or result is not there yet, with the verb that makes it.
    """
    wired = config.wiring("audit", key, root / "configs")
    results = result_paths(root, key)
    _made(root, key, results)
    found = audit(root / wired["shards"], model_paths(root, key), results)
    show(found)
    leaks = sum(len(check.leaks) for check in found.checks)
    written = {
        "passed": not leaks, "results": {f"{p.parent.name}/{p.name}": sha256(p) for p in results},
        "splits": [s.name for s in found.splits], "checks": [vars(c) for c in found.checks],
    }  # fmt: skip
    out = root / f"data/results/audit/{key}.json"
    write_result(out, written)
    if leaks:
        listed = [f"{x} ({check.what})" for check in found.checks for x in _first(check.leaks)]
        raise LeakageError(f"audit {key} found {leaks} leaks, all in {out}\n" + "\n".join(f"  {x}" for x in listed))


def _made(root: Path, key: str, results: list[Path]) -> None:
    """Raise FileNotFoundError where a model or result of the wiring is not there yet."""
    lacking = [p for p in model_paths(root, key) if not (p / "card.json").exists()]
    lacking += [p for p in results if not p.exists()]
    if lacking:
        first, tokenizers = lacking[0], config.keys("tokenize", key, root / "configs")
        verb = first.parent.name if first.suffix else "tokenize" if first.name in tokenizers else "pretrain"
        raise FileNotFoundError(
            f"{first} is not there yet ({len(lacking)} models and results of the wiring {key} are not): run `brainfm "
            f"{verb} {first.stem}` first, or all stages with `make repro`"
        )


def show(found: Audit) -> None:
    """Print a line for every check, and under it what was odd and what could not be checked."""
    print(f"  {len(found.splits)} splits of models and results")
    for check in found.checks:
        print(f"  {'LEAK' if check.leaks else 'ok  '} {check.what} ({check.pairs:,} {check.of})")
        for word, said in (("warning", check.warnings), ("not checked", check.unchecked)):
            for text in _first(said):
                print(f"         {word}: {text}")


def _first(said: list[str]) -> list[str]:
    return said[:SHOWN] + ([f"and {len(said) - SHOWN} more"] if len(said) > SHOWN else [])


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
