"""tokenize: train a codebook on a corpus, keep it in data/models/<key>, and write data/codes/<key>."""

import shutil
from pathlib import Path

from brainfm import config
from brainfm.shards.read import open_shards
from brainfm.training.checkpoint import write_card
from brainfm.training.codes import tokenize
from brainfm.training.figures import of_tokenizer
from brainfm.training.runs import BLOCKS, TOKENIZER, train_and_save


def run(key: str, seed: int, root: Path = Path()) -> None:
    """Train the codebook `key` as the wiring says, then write the codes of every recording of its corpus."""
    wired = config.wiring("tokenize", key, root / "configs")
    settings = config.stage_config("tokenize", key, BLOCKS, root / "configs")
    folder, out = root / "data/models" / key, root / "data/codes" / key
    tokenizer = train_and_save(
        "codebooks", wired["codebook"], root / "data" / wired["data"], settings, folder, root / "data/work" / key, seed,
        f"configs/tokenize/{key}.yaml", of_tokenizer,
    )  # fmt: skip
    said = tokenize(
        tokenizer.model, open_shards(root / "data" / wired["data"]), out, settings["windows"]["length_s"], 64, True
    )
    shutil.copytree(folder, out / TOKENIZER, dirs_exist_ok=True)
    tokenizer.card["codes"] = said
    write_card(folder, tokenizer.card)
    print(f"tokenize {key}: {said}")
