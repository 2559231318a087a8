"""The import rule, what a verb may load, and the DVC wiring: nothing undeclared is read, no word is unknown."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml

from brainfm import catalog, config, splits

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "brainfm"
LEFT = ("recording", "checksums", "hdf", "modalities", "readers", "datasets", "shards")
RIGHT = ("tokens", "layers", "codebooks", "models", "objectives")
ALONE = ("metrics", "ranking", "statistics", "splits", "catalog", "recording", "tokens", "checksums", "hdf")
#: part → parts that it may import beside itself. `recording` reaches the right chain as vocabulary: the words of KINDS.
ALLOWED: dict[str, tuple[str, ...]] = {
    **{part: () for part in ALONE},
    "config": ("catalog",),
    "modalities": ("recording",),
    "readers": ("recording", "modalities", "checksums", "hdf"),
    "datasets": ("recording", "modalities", "checksums", "readers"),
    "shards": ("recording", "splits", "checksums", "hdf"),
    "layers": ("recording", "tokens"),
    "codebooks": ("recording", "tokens", "layers"),
    "models": ("recording", "tokens", "layers", "codebooks"),
    "objectives": ("recording", "tokens", "layers", "codebooks", "models"),
    "training": ("recording", "shards", "splits", *RIGHT, "catalog", "config", "checksums"),
    "audit": ("recording", "shards", "checksums"),
}
ALLOWED["evaluations"] = (*ALLOWED["training"], "training", "metrics", "statistics")
ALLOWED["report"] = (*ALLOWED["evaluations"], "evaluations", "ranking")
TOP = ("api", "check", "cli", "compare", "decode_codes", "decode_file", "describe", "faults", "finetune", "given",
       "sklearn", "stages")  # fmt: skip
HEAVY = ("torch", "pytorch_lightning", "lightning")


def part_of(module: str) -> str:
    """`brainfm.models.luna` → `models`."""
    return module.split(".")[1]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(p): p for p in sorted(PACKAGE.glob("**/*.py")) if p != PACKAGE / "__init__.py"}


class _Imports(ast.NodeVisitor):
    """Imported names of a module, also those inside functions; not those for the type checker alone."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {a.name for a in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, f"relative import in line {node.lineno}"
        for a in node.names:
            inner = f"{node.module}.{a.name}"
            self.found.add(inner if inner in MODULES else str(node.module))


@cache
def imports(path: Path) -> frozenset[str]:
    visitor = _Imports()
    visitor.visit(ast.parse(path.read_text()))
    return frozenset(visitor.found)


def ours(path: Path) -> set[str]:
    return {m for m in imports(path) if m.startswith("brainfm.")}


def closure(modules: set[str]) -> set[str]:
    """The modules and everything of ours that they import, directly or not."""
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in seen and module in MODULES:
            seen.add(module)
            waiting += ours(MODULES[module])
    return seen


@pytest.mark.parametrize("module", MODULES)
def test_import_rule(module: str) -> None:
    part, path = part_of(module), MODULES[module]
    outside = {name.split(".")[0] for name in imports(path)} - {"brainfm"}
    forbidden: set[str] = set()
    if part in LEFT:
        forbidden = {*HEAVY, "dvclive"}
    elif part in RIGHT:
        forbidden = {"pytorch_lightning", "lightning", "dvclive", "h5py", "mne", "dvc"}
    elif part != "training":
        forbidden = {"pytorch_lightning", "lightning"}
    assert not outside & forbidden, f"{module} imports {sorted(outside & forbidden)}"
    if part not in TOP:
        assert part in ALLOWED, f"{module}: say in ALLOWED of this test what {part} may import"
        wrong = {m for m in ours(path) if part_of(m) not in (part, *ALLOWED[part])}
        assert not wrong, f"{module} imports {sorted(wrong)}"


def test_import_rule_sees_imports_inside_functions(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        "if TYPE_CHECKING:\n    import mne\ndef f():\n    from brainfm.shards import read\n    import torch.nn\n"
    )
    assert imports(path) == {"brainfm.shards.read", "torch.nn"}


ALL_OF = "from brainfm import catalog\nfor name in catalog.names({0!r}): catalog.load({0!r}, name)"
LIGHT = {
    "brainfm": "import brainfm",
    "--help": "from brainfm.cli import main\nsys.argv = ['', '--help']\ntry:\n    main()\nexcept SystemExit:\n    pass",
    "stages.fetch": "import brainfm.stages.fetch",
    "stages.ingest": "import brainfm.stages.ingest",
    "datasets": ALL_OF.format("datasets"),
    "modalities": ALL_OF.format("modalities"),
}


def test_light_entries_load_no_torch() -> None:
    """One process imports one entry after the other and says after each which heavy library has been loaded."""
    said = "import sys\n" + "\n".join(
        f"{code}\nprint('LOADED', {name!r}, [m for m in {HEAVY!r} if m in sys.modules])" for name, code in LIGHT.items()
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert lines == [f"LOADED {name} []" for name in LIGHT]


# The DVC wiring.

DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PIPELINE = yaml.safe_load((ROOT / "configs/pipeline.yaml").read_text())
WIRINGS = {"pipeline": PIPELINE} | {
    p.stem: yaml.safe_load(p.read_text()) for p in sorted((ROOT / "configs/wirings").glob("*.yaml"))
}
ENTRIES = [
    pytest.param(stage, key, item or {}, id=f"{stage}@{key}")
    for wiring in WIRINGS.values()
    for stage, group in wiring.items()
    if isinstance(group, dict)
    for key, item in group.items()
]
#: Stages whose knobs are in a file.
TUNED = ("ingest", "tokenize", "pretrain", "decode", "transfer")
#: Not declared by any stage: the package's first page is docstring and lazy names, a folder's is a docstring; the
#: command line only hands its words on, and describe only prints what the stage gave back. None shapes an output.
EXEMPT = {"brainfm.cli", "brainfm.describe"}


def filled(text: str, key: str, item: dict) -> str:
    """A template of dvc.yaml for one key: `${key}`, `${item.data}`."""
    words = {"key": key, "seed": "0"} | {f"item.{k}": str(v) for k, v in item.items()}
    return re.sub(r"\$\{([^}]+)\}", lambda m: words[m[1]], text)


def outs(stage: str, key: str, item: dict) -> list[str]:
    listed = (next(iter(o)) if isinstance(o, dict) else o for o in DVC[stage]["do"]["outs"])
    return [filled(o, key, item) for o in listed]


def deps(stage: str, key: str, item: dict) -> list[str]:
    return [filled(d, key, item) for d in DVC[stage]["do"]["deps"]]


def entry(stage: str, key: str) -> dict:
    return next((w[stage][key] or {} for w in WIRINGS.values() if key in (w.get(stage) or {})), {})


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def settings(stage: str, key: str) -> dict:
    return yaml.safe_load((ROOT / f"configs/{stage}/{key}.yaml").read_text()) or {}


def test_every_stage_is_wired_and_every_group_is_a_stage() -> None:
    groups = {stage: re.fullmatch(r"\$\{(\w+)\}", said["foreach"])[1] for stage, said in DVC.items()}
    assert groups == {stage: stage for stage in DVC}
    assert set(DVC) == {p.stem for p in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    assert set(PIPELINE) - {"seed"} == set(DVC)
    for name, wiring in WIRINGS.items():
        assert set(wiring) - {"seed"} <= set(DVC), name


def test_names_of_keys_are_not_used_twice() -> None:
    """The command line finds a key in any wiring, so one key may mean one thing only."""
    for stage in DVC:
        said = [item for w in WIRINGS.values() for item in (w.get(stage) or {}).items()]
        assert all(mine == other for key, mine in said for name, other in said if name == key), stage


def test_dvc_yaml_holds_no_value() -> None:
    for stage, said in DVC.items():
        words = re.sub(r"\$\{[^}]+\}", "X", said["do"]["cmd"]).split()
        assert words[:3] == ["brainfm", stage, "X"]
        assert all(re.fullmatch(r"--[a-z-]+|X", w) for w in words[3:]), said["do"]["cmd"]
        for path in (*said["do"]["deps"], *map(str, said["do"]["outs"])):
            assert not re.search(r"\d", path), f"{stage}: {path}"
        assert set(said["do"]) <= {"cmd", "deps", "params", "outs"}, stage


@pytest.mark.parametrize(("stage", "key", "item"), ENTRIES)
def test_declared_files_exist_or_are_made(stage: str, key: str, item: dict) -> None:
    assert ("params" in DVC[stage]["do"]) == (stage in TUNED)
    if stage in TUNED:
        declared = [filled(next(iter(p)), key, item) for p in DVC[stage]["do"]["params"]]
        assert declared == [f"configs/{stage}/{key}.yaml"]
        assert (ROOT / declared[0]).is_file()
    made = [o for p in ENTRIES for o in outs(*p.values)]
    for dep in deps(stage, key, item):
        if dep.startswith("data/"):
            assert any(within(o, dep) or within(dep, o) for o in made), f"no stage makes {dep}"
        else:
            assert (ROOT / dep).exists(), f"{stage} declares {dep}, which is not there"


@pytest.mark.parametrize(("stage", "key", "item"), ENTRIES)
def test_another_word_of_a_wiring_runs_the_stage_again(stage: str, key: str, item: dict) -> None:
    """Each word is in the command, a dependency or an output: DVC compares nothing else."""

    def compared(words: dict) -> set[str]:
        return {filled(DVC[stage]["do"]["cmd"], key, words), *deps(stage, key, words), *outs(stage, key, words)}

    deaf = [word for word in item if compared(item) == compared({**item, word: "another"})]
    assert not deaf, f"dvc.yaml: {stage}@{key} stays as it is when {deaf} of its wiring changes"


def test_no_orphan_configuration() -> None:
    wired = {f"configs/{p.values[0]}/{p.values[1]}.yaml" for p in ENTRIES if p.values[0] in TUNED}
    wirings = {"configs/pipeline.yaml"} | {f"configs/wirings/{w}.yaml" for w in WIRINGS if w != "pipeline"}
    found = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("**/*") if p.is_file()}
    assert found == wired | wirings


def test_no_output_is_written_by_two_stages() -> None:
    made = sorted({(f"{p.values[0]}@{p.values[1]}", o) for p in ENTRIES for o in outs(*p.values)})
    for i, (one, a) in enumerate(made):
        for other, b in made[i + 1 :]:
            assert not within(a, b), f"{one} writes {a} into {b} of {other}"
            assert not within(b, a), f"{other} writes {b} into {a} of {one}"


def modules_of(stage: str, key: str, item: dict) -> set[str]:
    """What a stage imports: itself, and the catalogue's entries that its wiring and configuration name."""
    named = {f"brainfm.stages.{stage}"}
    if stage in ("fetch", "ingest"):
        named.add(f"brainfm.datasets.{key}")
    for word, kind in (("model", "models"), ("codebook", "codebooks"), ("evaluation", "evaluations")):
        if word in item:
            trained = entry("pretrain", item[word]) if stage in ("decode", "transfer") and word == "model" else None
            named.add(f"brainfm.{kind}.{trained['model'] if trained else item[word]}")
    if stage in ("tokenize", "pretrain"):
        named |= {f"brainfm.objectives.{o}" for o in settings(stage, key)["objectives"]}
    missing = named - set(MODULES)
    assert not missing, f"{stage}@{key} names {sorted(missing)}, which is not there"
    return named


def undeclared(stage: str, key: str, item: dict, used: set[str]) -> list[str]:
    declared = deps(stage, key, item)
    files = {str(MODULES[m].relative_to(ROOT)) for m in used - EXEMPT if MODULES[m].name != "__init__.py"}
    return sorted(f for f in files if not any(within(f, d) for d in declared))


@pytest.mark.parametrize(("stage", "key", "item"), ENTRIES)
def test_code_that_a_stage_imports_is_declared(stage: str, key: str, item: dict) -> None:
    missing = undeclared(stage, key, item, closure(modules_of(stage, key, item)))
    assert not missing, f"dvc.yaml: stage {stage} reads code that it does not declare: {missing}"


@pytest.mark.parametrize(("stage", "key", "item"), [p for p in ENTRIES if p.values[0] in ("tokenize", "pretrain")])
def test_a_killed_run_follows_from_the_code_that_is_declared(stage: str, key: str, item: dict) -> None:
    """So an edit that runs the stage again never goes on from a checkpoint of the code before it."""
    from brainfm.training import runs

    named = f"models/{item['model']}.py" if stage == "pretrain" else f"codebooks/{item['codebook']}.py"
    declared = {d for d in deps(stage, key, item) if d.startswith("brainfm/")} - {f"brainfm/stages/{stage}.py"}
    assert declared == {f"brainfm/{part}" for part in (named, *runs.CODE)}


def test_shards_follow_from_the_code_that_is_declared() -> None:
    """All of it but what hands words on, and the split, which is written beside them every time."""
    from brainfm.stages import ingest

    said = {d for d in DVC["ingest"]["do"]["deps"] if d.startswith("brainfm/")}
    beside = {"brainfm/stages/ingest.py", "brainfm/datasets", "brainfm/splits.py", "brainfm/config.py",
              "brainfm/catalog.py"}  # fmt: skip
    assert said - beside == {f"brainfm/{part}" for part in ingest.CODE}
    assert beside <= said


@pytest.mark.slow
@pytest.mark.parametrize("stage", DVC)
def test_code_that_a_stage_really_loads_is_declared(stage: str) -> None:
    """The same from `sys.modules` of a process that imported a stage: the parsing above has missed nothing."""
    _, key, item = next(p.values for p in ENTRIES if p.values[0] == stage)
    code = "\n".join(f"import {m}" for m in sorted(modules_of(stage, key, item)))
    code = f"import sys\n{code}\nprint(*[m for m in sys.modules if m.startswith('brainfm.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert f"brainfm.stages.{stage}" in loaded
    assert not undeclared(stage, key, item, loaded)


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("stage", ["audit", "report"])
def test_a_wiring_audits_and_reports_all_that_it_makes(stage: str, name: str) -> None:
    """The report shows what results took, too; the audit reads no cost, and neither of them codes."""
    unread = ("data/codes", *(("data/results/cost",) if stage == "audit" else ()))
    made = [
        out
        for made_by in ("tokenize", "pretrain", "decode", "transfer")
        for key, item in (WIRINGS[name].get(made_by) or {}).items()
        for out in outs(made_by, key, item or {})
        if not any(within(out, folder) for folder in unread)
    ]
    for key, item in (WIRINGS[name].get(stage) or {}).items():
        missing = [o for o in made if not any(within(o, d) for d in deps(stage, key, item))]
        assert not missing, f"{stage}@{key} does not depend on {missing}"


# Keywords: every word of a configuration is one that its receiver knows.


@pytest.mark.parametrize(("stage", "key", "item"), [p for p in ENTRIES if p.values[0] == "ingest"])
def test_ingest_keywords(stage: str, key: str, item: dict) -> None:
    given = config.stage_config(stage, key, ("recordings", "split"), ROOT / "configs")
    config.keywords(catalog.load("datasets", key).recordings, given["recordings"], key, ("root", "subjects"))
    config.keywords(splits.assign, given["split"], key, ("recordings",))


@pytest.mark.parametrize(("stage", "key", "item"), [p for p in ENTRIES if p.values[0] in ("tokenize", "pretrain")])
def test_training_keywords(stage: str, key: str, item: dict) -> None:
    from brainfm.training import runs
    from brainfm.training.pretraining import Settings

    blocks = (*runs.BLOCKS, "codes") if stage == "tokenize" else runs.BLOCKS
    given = config.stage_config(stage, key, blocks, ROOT / "configs")
    kind = "models" if stage == "pretrain" else "codebooks"
    make = catalog.load(kind, item[kind[:-1]]).build
    config.keywords(make, given["model"], f"{key}: model", ("facts", "codebook"))
    config.keywords(Settings, given["training"], f"{key}: training")
    config.keywords(runs.sides, given["windows"], f"{key}: windows", ("corpus",))
    assert given["objectives"], key
    for name, keywords in given["objectives"].items():
        config.keywords(catalog.load_class("objectives", name), keywords or {}, f"{key}: {name}")


@pytest.mark.parametrize(("stage", "key", "item"), [p for p in ENTRIES if p.values[0] in ("decode", "transfer")])
def test_evaluation_keywords(stage: str, key: str, item: dict) -> None:
    from brainfm.evaluations.tasks import BLOCKS
    from brainfm.shards.stored import Stored

    given = config.stage_config(stage, key, BLOCKS, ROOT / "configs")
    run = catalog.load("evaluations", item["evaluation"]).run
    config.keywords(run, given["evaluation"], f"{key}: evaluation", ("model", "train", "test", "seed"))
    headers = {f.name for f in fields(Stored)} | {"person"}
    cut = given["windows"]
    assert {"train", "test"} <= set(cut) <= {"train", "test", "trials", "length_s", "stride_s"}
    for side in ("train", "test"):
        assert all(set(words) <= headers for words in (cut[side] if isinstance(cut[side], list) else [cut[side]]))
    assert ("trials" in cut) != ("length_s" in cut)
    assert set(cut.get("trials") or {}) <= {"tmin_s", "tmax_s", "labels"}
    assert given["title"]
