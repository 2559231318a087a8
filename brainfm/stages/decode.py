"""decode: one evaluation of one model → data/results/decode/<key>.json."""

from pathlib import Path

from brainfm.evaluations.tasks import evaluate


def run(key: str, seed: int, root: Path = Path()) -> dict:
    """Evaluate `key` as configs/decode/<key>.yaml says and give back the result."""
    return evaluate("decode", key, seed, root)
