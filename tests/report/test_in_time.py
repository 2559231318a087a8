"""Pictures of decoding over time: of a recording as a PNG, of a trial as curves, and bars of bands."""

from __future__ import annotations

import io
from pathlib import Path

import browser
import made_up
import matplotlib.image
import numpy as np
import pytest

from brainfm.recording import Events
from brainfm.report import in_time
from brainfm.report.page import write_page

COURSE = ("time", "score", "ci", "p")


def curve(model: str, score: list[float | None]) -> dict:
    n = len(score)
    ends = [[0.4, 0.9]] * (n - 1) + [None]
    return {
        "model": model,
        **dict(zip(COURSE, ([0.1 * i for i in range(n)], score, ends, [0.5, 0.01, None]), strict=True)),
    }


def result(**more: object) -> dict:
    rng = np.random.default_rng(0)
    said = made_up.classification(rng, "when", "when", ["<b>left", "right"], 0.7) | {
        "in_time": {"curves": [curve("pretrained", [0.5, 0.8, None]), curve("</script><i>log power", [0.5, 0.6, 0.5])]},
        "importance": {"bands": [{"name": "alpha", "score": 0.2, "ci": [0.1, 0.3]},
                                 {"name": "beta", "score": -0.01, "ci": None}]},
    }  # fmt: skip
    return {**said, **more}


def picture(**more: object) -> np.ndarray:
    time = np.concatenate([np.arange(0, 20, 0.5), np.arange(30, 50, 0.5)])
    high = np.clip(np.sin(time / 4) / 2 + 0.5, 0, 1)
    words = {
        "time": time, "chances": np.column_stack([1 - high, high]), "part": np.repeat([0, 2], 40),
        "classes": ["rest", "$task"], "events": Events(), "title": "someone_$raw", **more,
    }  # fmt: skip
    return matplotlib.image.imread(io.BytesIO(in_time.course(**words)))  # type: ignore[arg-type]


def test_a_recording_is_drawn_with_its_break_and_its_events() -> None:
    plain = picture()
    marked = picture(events=Events(np.array([5.0, 35.0]), np.array([10.0, 0.0]), ["$task", "blink"]))
    rows = np.any(plain != marked, axis=(1, 2))
    assert rows.any()
    assert not rows[len(rows) // 2 :].any()  # marks stand above the probabilities
    middle = plain[round(plain.shape[0] * 0.6)]
    white = (middle[:, :3] > 0.99).all(axis=1)
    inside = white[round(plain.shape[1] * 0.08) : round(plain.shape[1] * 0.96)]
    assert 0.15 < inside.mean() < 0.3  # 10.5 of 49.5 seconds were not decoded
    long = picture(time=np.arange(80) * 60.0, part=np.zeros(80, int))
    assert long.shape == plain.shape


def test_curves_and_bars_say_what_they_know() -> None:
    found = in_time.draw([result(), {"task": "nothing"}, result(in_time=None, importance={"bands": [{"name": "x"}]})])
    assert len(found) == 2
    assert 'id="fig-in-time-1"' in found[0]
    assert "log power" in found[0]
    assert "</script><i>" not in found[0]
    assert 'id="fig-importance-1"' in found[1]
    assert in_time.draw([]) == []


def test_curves_say_what_chance_exchanges() -> None:
    said = result()
    assert "fewer than 5 % of cases, by permutation, over all times" in in_time.draw([said])[0]
    said["in_time"]["p_over"] = "stretches"
    assert "of cases, by permutation of stretches within recordings, over all times" in in_time.draw([said])[0]


@pytest.mark.skipif(browser.chromium() is None, reason="no chromium on this machine")
@pytest.mark.slow
def test_the_page_draws_them(tmp_path: Path) -> None:
    page = write_page(tmp_path / "r.html", "t", made_up.stored(tmp_path, [result()]), [], None, {"commit": "x"})
    seen, console = browser.opened(page)
    assert console == []
    assert seen.figures["fig-in-time-1"] == seen.figures["fig-importance-1"] == "true"
