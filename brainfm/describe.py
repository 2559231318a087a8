"""What is in a shard, a model or a result, and what the catalogue holds, for the terminal."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from brainfm import catalog
from brainfm.recording import FATES

if TYPE_CHECKING:
    from brainfm.report import tables
    from brainfm.shards.stored import Stored

#: Wide enough for whole ids where no terminal says how wide it is (pipes, logs, notebooks).
CONSOLE = Console(width=None if Console().is_terminal else 180)

KINDS = ("models", "codebooks", "datasets", "objectives", "evaluations")

#: What every result holds.
RESULT = ("metric", "score", "ci", "ci_over", "chance", "n_subjects", "n_trials")


def show(path: Path) -> None:
    """Print what is at `path`.

    Raises:
        FileNotFoundError: where there is nothing.
        ValueError: for a file that is none of ours.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; the pipeline's output is under data/")
    if (path / "config.json").exists():
        _show_model(path)
    elif path.suffix == ".json":
        show_result(_read_result(path))
    elif path.suffix == ".html":
        _show_report(path)
    elif path.is_dir() or path.suffix == ".h5":
        (_show_codes if _holds_codes(path) else _show_shards)(path)
    else:
        raise ValueError(
            f"{path} is neither a shard (.h5), a folder of shards, a model folder, a result (.json) nor a report"
        )


def _holds_codes(path: Path) -> bool:
    from brainfm.shards import schema
    from brainfm.shards.codes import SCHEMA

    return schema.kind_of(schema.shard_files(path, "no shard under {}; make them with `brainfm ingest`")[0]) == SCHEMA


def _show_codes(path: Path) -> None:
    """One table for each tokenizer and way that it was run."""
    from brainfm.shards.codes import open_codes, summary

    corpus = open_codes(path)
    for said in summary(corpus.recordings):
        table = Table(title=f"{path}: codes of {len(corpus.people)} people", show_header=False)
        perplexity = ", ".join(f"{p:.1f}" for p in said["perplexity"])
        rows = {
            "tokenizer": f"{said['tokenizer']}, {said['tokenizer_hash'][:12]}",
            "recordings": f"{said['recordings']}, {said['windows']} windows, {said['seconds'] / 60:.1f} minutes",
            "windows": f"{said['patch']} samples, overlap {said['overlap']:g}; {said['window_s']:g} s seen at once",
            "bits per second": f"{said['bits_per_second']:.0f}",
            "compression": f"{said['compression']:.1f} times less than int16",
            "perplexity by depth": f"{perplexity} of {said['codes_per_depth']} codes",
            "features": f"stored as {said['features']}" if said["features"] else "not stored",
        }
        for name, value in rows.items():
            table.add_row(name, value)
        CONSOLE.print(table)


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not whole ({error}); remove it and run `dvc repro`") from error
    missing = [k for k in RESULT if k not in result]
    if missing:
        raise ValueError(f"{path} is JSON but not a result: {', '.join(missing)} is missing")
    return result


def _show_shards(path: Path) -> None:
    from brainfm.shards.read import open_shards

    corpus = open_shards(path)
    table = Table(title=f"{path}: {len(corpus)} recordings of {len(corpus.people)} people")
    for column in ("recording", "split", "modality", "device", "channels", "rate (Hz)", "minutes", "events"):
        table.add_column(column, no_wrap=True)
    for r in corpus.recordings:
        table.add_row(
            r.id + (" (simulated)" if r.simulated else ""), r.split, r.modality, r.device,
            f"{len(r.channels)} {', '.join(sorted(set(r.channels.kind)))}", f"{r.sfreq:g}" if r.sfreq else "events",
            f"{r.duration / 60:.1f}", str(len(r.events)),
        )  # fmt: skip
    CONSOLE.print(table)
    first = corpus.recordings[0]
    about = first.provenance()
    lines = [f"  {json.dumps(step)}" for step in about["steps"]]
    print(f"processing of {first.id}:\n" + "\n".join(lines))
    print(f"  files: {', '.join(about['files']) or 'none'}; participant: {about.get('participant') or 'not known'}")
    if "signal" in first.arrays:
        fitted = first.normaliser()
        said = f"{fitted.statistic}, fitted on {fitted.fitted_on}" if fitted else "none"
        print(f"  stored as {first.arrays['signal'].dtype}; normaliser: {said}")
        print(f"  a sample depends on {first.reach_s:.3g} s to either side of it")
    _show_channels(corpus.recordings, one=path.suffix == ".h5")


def _show_channels(recordings: Sequence[Stored], one: bool) -> None:
    """What became of the files' channels: counts over all recordings, and every line of a single shard's first one."""
    logs = {r.id: r.channel_log() for r in recordings}
    table = Table(title="channels of the files")
    for column in ("fate", "channels", "recordings", "why (most often)"):
        table.add_column(column)
    for fate in FATES:
        found = {key: [line for line in log if line.fate == fate] for key, log in logs.items()}
        count = sum(map(len, found.values()))
        if count:
            why = Counter(line.detail for lines in found.values() for line in lines if line.detail).most_common(2)
            said = "; ".join(f"{detail} ({n})" for detail, n in why)
            table.add_row(fate, str(count), str(sum(1 for lines in found.values() if lines)), said)
    placed = Counter(word for r in recordings for word in r.channels.placed)
    if any(logs.values()):
        CONSOLE.print(table)
    print(f"positions: {', '.join(f'{word} {n}' for word, n in placed.items())}")
    if one and logs[recordings[0].id]:
        lines = Table(title=f"channels of {recordings[0].id}")
        for column in ("in the file", "here", "fate", "why"):
            lines.add_column(column)
        for line in logs[recordings[0].id]:
            lines.add_row(line.found, line.name, line.fate, line.detail)
        CONSOLE.print(lines)


def _show_model(path: Path) -> None:
    from brainfm.training import checkpoint

    config, card = checkpoint.read_config(path), checkpoint.read_json(path / checkpoint.CARD)
    table = Table(title=str(path), show_header=False)
    rows = {
        "network": f"{config['kind'].removesuffix('s')} {config['name']}, {card.get('parameters', 0):,} parameters",
        "keywords": json.dumps(config["keywords"]),
        "objective": ", ".join(card.get("objective", [])),
        "trained": f"imported from {card['released']['source']}"
        if "released" in card
        else f"{card.get('steps', 0)} steps in {card.get('seconds', 0):.0f} s, seed {card.get('seed')}",
        "data": "; ".join(
            f"{d['name']}{' (simulated)' if d['simulated'] else ''}, {d['subjects']} people, {d['licence']}"
            for d in card.get("datasets", [])
        ),
        "people seen": ", ".join(card.get("subjects", {}).get("train", [])),
        "validation": ", ".join(card.get("subjects", {}).get("val", [])),
        "metrics": ", ".join(
            f"{k} {v:.4g}" for k, v in sorted(card.get("metrics", {}).items()) if k.startswith("val/")
        ),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    CONSOLE.print(table)


def _show_report(path: Path) -> None:
    """The table of a report's results, and where the page lies."""
    from brainfm.report import tables
    from brainfm.stages.audit import result_paths

    table = Table(title=f"results of the wiring {path.stem}")
    for column in ("stage", "key", "metric", "score", "95 % interval", "chance", "people", "trials", "baselines"):
        table.add_column(column)
    found = {file: _read_result(file) for file in result_paths(Path(), path.stem)}
    for file, r in found.items():
        table.add_row(
            file.parent.name, file.stem + (" (simulated)" if r.get("simulated") else ""), r["metric"],
            _number(r["score"]), _interval(r["ci"]), _number(r["chance"]), str(r["n_subjects"]), str(r["n_trials"]),
            ", ".join(f"{k} {_number(v['score'])}" for k, v in r.get("baselines", {}).items()),
        )  # fmt: skip
    CONSOLE.print(table)
    _print_tables([tables.curve(r) for r in found.values()])
    print(f"report: {path.resolve()}")


def show_result(result: dict[str, Any]) -> None:
    """A result as tables: score and baselines with their intervals, then what else it holds."""
    from brainfm.report import tables

    simulated = " (simulated data)" if result.get("simulated") else ""
    table = Table(title=f"{result.get('task', result.get('key', 'result'))}{simulated}: {result['metric']}")
    for column in ("method", "score", "95 % interval"):
        table.add_column(column)
    table.add_row(str(result.get("model", "model")), _number(result["score"]), _interval(result["ci"]))
    for name, scored in result.get("baselines", {}).items():
        table.add_row(name, _number(scored["score"]), _interval(scored.get("ci")))
    table.add_row("chance", _number(result["chance"]), "")
    CONSOLE.print(table)
    p = f"; p = {_number(result['p'])} {tables.exchanged(result)}" if result.get("p") is not None else ""
    print(f"{result['n_subjects']} people, {result['n_trials']} trials; interval over {result['ci_over']}{p}")
    _print_tables([tables.curve(result), *tables.of(result)])


def _print_tables(found: Sequence[tables.Table]) -> None:
    """Tables that have rows."""
    from brainfm.report.tables import text

    for one in (x for x in found if x.rows):
        table = Table(title=escape(one.title), caption=escape(one.note))
        for head in one.heads:
            table.add_column(escape(head))
        for row in one.rows:
            table.add_row(*(escape(text(cell, _number)) for cell in row))
        CONSOLE.print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(ci: list[float] | None) -> str:
    return "" if not ci or ci[0] is None else f"[{ci[0]:.3f}, {ci[1]:.3f}]"


def list_entries(what: str | None, as_json: bool) -> None:
    """Print the catalogue, or one kind of it.

    Raises:
        ValueError: for a kind that there is not, with the nearest.
    """
    if what is not None and what not in KINDS:
        raise ValueError(f"nothing is called {what!r}; {catalog.nearest(what, list(KINDS))}")
    for kind in [what] if what else KINDS:
        rows = list(_entries(kind))
        if as_json:
            for row in rows:
                print(json.dumps(row))
            continue
        table = Table(title=kind)
        for column in rows[0] if rows else ():
            table.add_column(column)
        for row in rows:
            table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values()))
        CONSOLE.print(table)


def _entries(kind: str) -> list[dict[str, Any]]:
    if kind in ("models", "codebooks"):
        return [row for name in catalog.names(kind) for row in _sizes(kind, name)]
    if kind == "datasets":
        cards = ((name, catalog.load(kind, name).CARD) for name in catalog.names(kind))
        return [
            {"name": n, "title": c["title"], "modality": c["modality"], "subjects": c["subjects"],
             "licence": c["licence"], "simulated": str(c["simulated"])} for n, c in cards
        ]  # fmt: skip
    folder = catalog.PACKAGE / kind
    docs = {n: ast.get_docstring(ast.parse((folder / f"{n}.py").read_text())) or "" for n in catalog.names(kind)}
    return [{"name": n, "what": d.splitlines()[0]} for n, d in docs.items() if kind != "objectives" or n != "__init__"]


def _sizes(kind: str, name: str) -> list[dict[str, Any]]:
    """Parameters at each size, counted on the meta device so that no memory is taken."""
    import torch

    from brainfm.training import checkpoint

    module = catalog.load(kind, name)
    rows = []
    for size, keywords in module.SIZES.items():
        config = {"kind": kind, "name": name, "keywords": keywords, "codebook": _codebook(module, size)}
        with torch.device("meta"):
            model = checkpoint.build(config, module.FACTS)
        rows.append({"name": name, "size": size, "parameters": checkpoint.parameters(model), "paper": module.PAPER})
    return rows


def _codebook(module: ModuleType, size: str) -> dict[str, Any] | None:
    """The codebook that a model's `build` asks for by its type: of the same size, or else the published one."""
    wanted = get_type_hints(module.build).get("codebook")
    if wanted is None:
        return None
    inner = import_module(wanted.__module__)
    keywords = inner.SIZES.get(size, inner.SIZES.get("published", {}))
    name = inner.__name__.split(".")[-1]
    return {"kind": "codebooks", "name": name, "keywords": keywords, "facts": asdict(inner.FACTS)}
