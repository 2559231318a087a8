"""The documents say what is there: paths, commands, verbs, datasets, versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from brainfm import catalog, cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/data.md",
    "docs/ingest.md",
    "docs/models.md",
)
#: What the pipeline or the installation makes, and addresses on the web.
MADE = ("data/", "params.yaml", ".venv", "http")
ENDINGS = (".py", ".md", ".yaml", ".ipynb", ".cff", ".toml", ".lock")


def read(name: str) -> str:
    return (ROOT / name).read_text()


def code(text: str) -> list[str]:
    """Lines of fenced blocks, and what stands between backticks elsewhere."""
    parts = text.split("```")
    return [line for block in parts[1::2] for line in block.splitlines()[1:]] + [
        span for part in parts[::2] for span in re.findall(r"`([^`]+)`", part)
    ]


def paths(text: str) -> set[str]:
    """Words between backticks that are paths of files that we keep, and the first words of ```text blocks."""
    trees = [line.split()[0] for block in re.findall(r"```text\n(.*?)```", text, re.S) for line in block.splitlines()]
    spans = [s for part in text.split("```")[::2] for s in re.findall(r"`([^`\s]+)`", part)]
    named = [s for s in spans if s.endswith(ENDINGS) or ("/" in s and re.fullmatch(r"\.?[a-z]+/[\w./]*", s))]
    return {p for p in (*trees, *named) if not p.startswith(MADE) and not re.search(r"[<>*{}]", p)}


def exists(path: str) -> bool:
    """From the root, from brainfm/, or a bare file name anywhere in brainfm/."""
    if (ROOT / path).exists() or (ROOT / "brainfm" / path).exists():
        return True
    return "/" not in path and any((ROOT / "brainfm").glob(f"*/{path}"))


def verbs() -> set[str]:
    return {
        command.name or command.callback.__name__
        for command in cli.app.registered_commands
        if command.name or command.callback
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_named_exists(name: str) -> None:
    assert not [p for p in sorted(paths(read(name))) if not exists(p)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    links = [x for x in re.findall(r"\]\(([^)#]+)", read(name)) if not x.startswith("http")]
    assert not [x for x in links if not ((ROOT / name).parent / x).exists()]


def test_paths_are_found_at_all() -> None:
    text = "`brainfm/absent.py`, [x](y.md), `data/raw`, `m/s`\n```text\nbrainfm/nowhere/   what\n```\n`a b.py`"
    assert paths(text) >= {"brainfm/absent.py", "brainfm/nowhere/"}
    assert "data/raw" not in paths(text)
    assert not exists("brainfm/absent.py")
    assert len(paths(read("README.md"))) > 20


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_command_is_a_target(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.M))
    lines = " ; ".join(code(read(name)))
    asked = {word for words in re.findall(r"\bmake ((?:[a-z]+ ?)+)", lines) for word in words.split()}
    assert asked <= targets
    assert name != "README.md" or {"repro", "test"} <= asked


@pytest.mark.parametrize("name", ["README.md", "docs/data.md", "CONTRIBUTING.md"])
def test_every_verb_named_is_a_verb(name: str) -> None:
    assert {
        w for line in code(read(name)) for w in re.findall(r"\bbrainfm ([a-z_]+(?:-[a-z]+)*)\b(?!\.)", line)
    } <= verbs()


def test_every_verb_stands_in_the_readme_table() -> None:
    rows = set(re.findall(r"^\| `brainfm ([a-z-]+)", read("README.md"), re.M))
    assert rows == verbs()


def test_every_package_folder_stands_in_the_readme_tree() -> None:
    folders = {f"brainfm/{p.parent.name}/" for p in (ROOT / "brainfm").glob("*/__init__.py")}
    assert folders <= paths(read("README.md"))


def test_architecture_is_one_page() -> None:
    assert len(read("ARCHITECTURE.md").splitlines()) < 120


def test_every_dataset_is_described_with_its_licence() -> None:
    rows = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", read("docs/data.md"), re.M)}
    assert set(rows) == set(catalog.names("datasets"))
    for name, row in rows.items():
        card = catalog.load("datasets", name).CARD
        assert card["licence"] in row, name
        assert f"| {card['subjects']}" in row, name
        assert ("simulated" in row) == card["simulated"], name


def test_the_citation_file_is_whole() -> None:
    cited = yaml.safe_load(read("CITATION.cff"))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert cited["cff-version"] == "1.2.0"
    assert cited["message"]
    assert all(cited[k] == project[v] for k, v in (("title", "name"), ("version", "version"), ("license", "license")))
    for reference in cited["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference), reference.get("title")
    titles = " ".join(r["title"] for r in cited["references"])
    assert all(word in titles for word in ("BrainOmni", "LUNA", "Neuroformer", "BrainLM"))


def test_every_arxiv_number_of_the_citations_stands_in_the_code_too() -> None:
    numbers = re.findall(r"arxiv\.org/abs/([\d.]+\d)", read("CITATION.cff"))
    source = " ".join(p.read_text() for p in (ROOT / "brainfm").glob("**/*.py"))
    assert numbers
    assert not [n for n in numbers if n not in source]


def test_the_changelog_names_the_version() -> None:
    assert tomllib.loads(read("pyproject.toml"))["project"]["version"] in read("CHANGELOG.md")


def test_hooks_are_local() -> None:
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))
    assert {repo["repo"] for repo in hooks["repos"]} == {"local"}
    assert {hook["language"] for repo in hooks["repos"] for hook in repo["hooks"]} == {"system"}
