"""Open a report in headless Chromium and tell what went wrong; used by the tests and on the real report."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

#: Settings that keep the browser from speaking to anyone of its own accord.
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=20000",
)  # fmt: skip


def chromium() -> str | None:
    """Path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Seen(HTMLParser):
    """What a page holds: figures by id and whether they are drawn, the body's data, and addresses it would load."""

    figures: dict[str, str] = field(default_factory=dict)
    body: dict[str, str] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    elements: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = {name: value or "" for name, value in attrs}
        self.elements.append(tag)
        if "figure" in facts.get("class", "").split():
            self.figures[facts["id"]] = facts.get("data-drawn", "")
        if tag == "body":
            self.body = facts
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            if facts.get(name) and not facts[name].startswith(("data:", "#")):
                self.loads.append(f"<{tag} {name}={facts[name]}>")

    def handle_data(self, data: str) -> None:
        inside = self.elements[-1] if self.elements else ""
        if inside == "style" and ("@import" in data or re.search(r"url\(\s*['\"]?(https?:)?//", data)):
            self.loads.append("<style> that loads from elsewhere")


def read(text: str) -> Seen:
    """The page as it is in a file or in a browser."""
    seen = Seen()
    seen.feed(text)
    return seen


def opened(page: Path) -> tuple[Seen, list[str]]:
    """The page after its scripts have run, and the lines that it wrote to the console."""
    browser = chromium()
    if browser is None:
        raise FileNotFoundError("no chromium, chromium-browser or google-chrome on the path; install chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *QUIET, f"--user-data-dir={profile}", "--dump-dom", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return read(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def undrawn(page: Path) -> list[str]:
    """Ids of figures that the browser did not draw."""
    return [identity for identity, drawn in opened(page)[0].figures.items() if drawn != "true"]


def errors(page: Path) -> list[str]:
    """Errors of the page's scripts and everything on the console, which should be silent."""
    seen, console = opened(page)
    return ([seen.body["data-errors"]] if seen.body.get("data-errors") else []) + console
