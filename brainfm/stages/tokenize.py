"""tokenize: train a codebook on a corpus, keep it in data/models/<key>, and write data/codes/<key>."""

import shutil
from pathlib import Path
from typing import Any

from brainfm import config
from brainfm.shards.codes import FEATURES
from brainfm.shards.read import Corpus, open_shards
from brainfm.training import checkpoint, figures
from brainfm.training.codes import TOKENIZER, tokenizer_hash, tokenizer_in
from brainfm.training.runs import BLOCKS, chosen, train_and_save
from brainfm.training.tokenizing import tokenize


class TokenizeError(RuntimeError):
    """Some recordings could not be tokenized; the others were."""


def coding(overlap: float = 0.0, features: str | None = None) -> dict[str, Any]:
    """The block `codes` of a configuration as keywords of `tokenize`.

    Args:
        overlap: share by which windows overlap. features: float16 or float32, to store quantised features too.

    Raises:
        ValueError: for a type of features that there is not.
    """
    if features is not None and features not in FEATURES:
        raise ValueError(f"features of type {features!r}; expected {' or '.join(FEATURES)}")
    return {"overlap": overlap, "features": features or ""}


def run(
    key: str, seed: int, overlap: float | None = None, features: str | None = None, batch_size: int | None = None,
    root: Path = Path(),
) -> dict[str, Any]:  # fmt: skip
    """Train the codebook `key` as the wiring says, then write the codes of every recording of its corpus.

    Args:
        overlap, features: as in `coding`; those of the configuration's block `codes` if None.
        batch_size: as in `tokenize`.

    Raises:
        TokenizeError: with a line per recording that failed, after all others are done.
    """
    wired = config.wiring("tokenize", key, root / "configs")
    where = f"configs/tokenize/{key}.yaml"
    settings = config.stage_config("tokenize", key, (*BLOCKS, "codes"), root / "configs")
    given = config.keywords(coding, settings.pop("codes"), f"{where}: codes")
    asked = {k: v for k, v in (("overlap", overlap), ("features", features)) if v is not None}
    how = coding(**{**given, **asked})
    folder, out = root / "data/models" / key, root / "data/codes" / key
    tokenizer = train_and_save(
        "codebooks", wired["codebook"], root / "data" / wired["data"], settings, folder, root / "data/work" / key, seed,
        where, figures.of,
    )  # fmt: skip
    named = {word: settings["windows"].get(word) for word in ("datasets", "sessions", "devices")}
    corpus = open_shards(root / "data" / wired["data"]).where(**chosen(**named))
    said = tokenize(
        tokenizer.model, corpus, out, settings["windows"]["length_s"], batch_size,
        True, expected=tokenizer.batcher().expected, **how,
    )  # fmt: skip
    shutil.copytree(folder, out / TOKENIZER, dirs_exist_ok=True)
    tokenizer.card["codes"] = said
    checkpoint.write_card(folder, tokenizer.card)
    return _said(key, said, out)


def run_path(
    shards: Path, model: Path, out: Path, window_s: float | None = None, overlap: float | None = None,
    features: str | None = None, batch_size: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the codes of any shards by any saved tokenizer, and the tokenizer beside them.

    Args:
        shards: a shard or a folder of shards.
        model: folder of a tokenizer, or of a model with one inside.
        out: folder of the codes.
        window_s: as in `tokenize`; what the tokenizer was trained with if None.
        overlap: as in `coding`; if None that of the model around the tokenizer, so that it reads codes and signals
            alike, and 0 for a tokenizer alone.
        features, batch_size: as in `coding` and `tokenize`.

    Raises:
        ValueError: where `model` holds no tokenizer, or codes and shards would lie in one folder.
        TokenizeError: as in `run`.
    """
    corpus = open_shards(shards)
    _refuse_one_folder(corpus, out)
    loaded = checkpoint.load(model)
    tokenizer = tokenizer_in(loaded, str(model))
    how = coding(getattr(loaded.model, "overlap", 0.0) if overlap is None else overlap, features)
    folder = out / TOKENIZER
    if not folder.exists() or tokenizer_hash(checkpoint.load(folder).model) != tokenizer_hash(tokenizer.model):
        tokenizer.save(folder)  # before the codes: those of a run that was killed can be read too
    name = Path(model).resolve().name
    said = tokenize(
        tokenizer.model, corpus, out, tokenizer.facts.window_s if window_s is None else window_s, batch_size, True,
        name=name, expected=tokenizer.batcher().expected, **how,
    )  # fmt: skip
    return _said(name, said, out)


def _refuse_one_folder(corpus: Corpus, out: Path) -> None:
    place, root = out.resolve(), corpus.root.resolve()
    root = root.parent if root.is_file() else root
    if place == root or place in root.parents or root in place.parents:
        raise ValueError(f"codes in {out} and shards in {corpus.root} would be mixed; give an `--out` beside them")


def _said(name: str, said: dict[str, Any], out: Path) -> dict[str, Any]:
    """Print what happened; raise where something failed."""
    perplexity = ", ".join(f"{p:.1f}" for p in said["perplexity"] or ())
    print(
        f"tokenize {name}: {said['windows']} windows in {out}; {said['shards_written']} shards written, "
        f"{said['shards_kept']} kept, {len(said['failed'])} recordings failed\n"
        f"  {said['bits_per_second']:.0f} bits per second, {said['compression']:.1f} times less than int16; "
        f"perplexity by depth {perplexity or 'none'}"
    )
    if said["failed"]:
        lines = "\n".join(f"  {key}: {why}" for key, why in sorted(said["failed"].items()))
        raise TokenizeError(f"{name}: {len(said['failed'])} recordings failed, the others are in {out}\n{lines}")
    return said
