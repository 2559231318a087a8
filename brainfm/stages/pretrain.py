"""pretrain: train a model on a corpus of shards or codes and keep it in data/models/<key>."""

from pathlib import Path

from brainfm import config
from brainfm.training import figures
from brainfm.training.runs import BLOCKS, train_and_save


def run(key: str, seed: int, root: Path = Path()) -> None:
    """Pretrain `key` as the wiring says; a killed run goes on from its last checkpoint."""
    wired = config.wiring("pretrain", key, root / "configs")
    settings = config.stage_config("pretrain", key, BLOCKS, root / "configs")
    train_and_save(
        "models", wired["model"], root / "data" / wired["data"], settings, root / "data/models" / key,
        root / "data/work" / key, seed, f"configs/pretrain/{key}.yaml", figures.of,
    )  # fmt: skip
