"""Tables of what a result holds beside its score: data alone, which the page and `brainfm info` print their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from brainfm.report.inputs import dicts, words
from brainfm.report.style import bounds, finite


@dataclass(frozen=True)
class Scored:
    """A score with its interval, None for none."""

    score: Any
    ci: Any = None


#: What stands in a table: words, a count or a number, several numbers, a score; None where there is nothing.
Cell = str | int | float | Sequence[Any] | Scored | None


@dataclass(frozen=True)
class Table:
    """Heads and rows; the first cell of a row is its name. `note` says what the head cannot."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


#: Paired differences at each number of labels: key of a result → part of a figure's id, what is compared, caption.
GAINS = {
    "effect_of_transfer": (
        "transfer", "effect of transfer",
        "What pretraining adds: pretrained minus untrained with the same labels, within people.",
    ),
    "joint_minus_separate": (
        "joint", "joint minus separate",
        "What learning responses and behaviour together adds to learning one after the other, with the same labels.",
    ),
}  # fmt: skip
#: Measures of which less is better; of all others more is.
LOWER = ("median rank / N",)
#: What chance exchanges (`p_over`, see `evaluations/chance.py`) → how p came about.
OVER = {
    "trials": "by permutation of trials within recordings",
    "stretches": "by permutation of stretches within recordings",
    "people": "by flipping signs of people, two-sided",
}
#: Regions that are listed, of those with the lowest score.
REGIONS = 20


def of(result: dict[str, Any]) -> list[Table]:
    """All tables that a result gives, in the order of reading; most results give none."""
    made = (
        measures, latents, median_errors, per_block, gains, differences, components, animals, regions, against_chance,
        candidates,
    )  # fmt: skip
    return [table for table in (one(result) for one in made) if table.rows]


def curve(result: dict[str, Any]) -> Table:
    """Methods by number of labels; the page draws it instead."""
    points = [p for p in dicts(result.get("curve")) if finite(p.get("shots"))]
    names = list(dict.fromkeys(words(p.get("model")) for p in points))
    at = {(p["shots"], words(p.get("model"))): scored(p) for p in points}
    rows = [(f"{s:g}", *(at.get((s, name)) for name in names)) for s in dict.fromkeys(p["shots"] for p in points)]
    title = f"{words(result.get('key'))}: {words(result.get('metric'))} by amount of calibration"
    return Table(title, ("shots", *names), rows, _axis(result))


def text(cell: Cell, number: Callable[[Any], str]) -> str:
    """A cell as words; `number` writes numbers, and what is none as it likes."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, Scored):
        pair = bounds(cell.ci)
        return number(cell.score) + (f" [{number(pair[0])}, {number(pair[1])}]" if pair else "")
    if isinstance(cell, Sequence):
        return ", ".join(text(x, number) for x in cell) or number(None)
    return number(cell)


def scored(said: Any) -> Scored | None:
    """The score and interval of `{"score", "ci"}`."""
    return Scored(said.get("score"), said.get("ci")) if isinstance(said, dict) else None


def measured(result: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure → method → `{"score"}`, with "ci" and more where known: of `measures`, or of `latents`.

    `latents` has no intervals and two networks; the result's own score stands among them with its interval and the
    baselines.
    """
    if said := result.get("measures"):
        return {title: {name: one or {} for name, one in (found or {}).items()} for title, found in said.items()}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, of_network in (result.get("latents") or {}).items():
        for title, value in (of_network or {}).items():
            found.setdefault(title, {})[name] = {"score": value}
    if (own := words(result.get("metric"))) in found:
        whole = {k: result.get(k) for k in ("score", "ci", "per_subject")}
        known = {"pretrained": whole, **{name: one or {} for name, one in (result.get("baselines") or {}).items()}}
        found[own] = {**found[own], **known}
    return found


def measures(result: dict[str, Any]) -> Table:
    """Methods by measures; chance and what was counted are rows of their own."""
    said = measured(result) if result.get("measures") else {}
    rows = _methods_by_measure(said)
    for key, name in (("chance", "chance"), ("n", "pairs scored")):
        values = [next((one[key] for one in found.values() if key in one), None) for found in said.values()]
        if any(x is not None for x in values):
            rows.append((name, *values))
    note = "; ".join(title for title in said if title in LOWER)
    return Table("Measures", ("method", *said), rows, f"Lower is better: {note}." if note else "")


def latents(result: dict[str, Any]) -> Table:
    """Methods by the scores of the Neural Latents Benchmark."""
    said = measured(result) if result.get("latents") and not result.get("measures") else {}
    return Table("Latents", ("method", *said), _methods_by_measure(said), "Means over animals.")


def _methods_by_measure(said: dict[str, dict[str, dict[str, Any]]]) -> list[tuple[Cell, ...]]:
    names = dict.fromkeys(name for found in said.values() for name in found)
    return [(name, *(scored(found.get(name)) for found in said.values())) for name in names]


def median_errors(result: dict[str, Any]) -> Table:
    """Median error of each method, by the number of labels where there is a curve."""
    errors = dict(result.get("median_error") or {})
    curve = [p for p in dicts(result.get("curve")) if errors and p.get("median_error") is not None]
    shots = sorted({p["shots"] for p in curve})
    at = {(p["model"], p["shots"]): p["median_error"] for p in curve}
    at |= {(name, max(shots)): error for name, error in errors.items() if shots}
    names = dict.fromkeys((*errors, *(p["model"] for p in curve)))
    rows = [(name, *(at.get((name, s)) for s in shots)) if shots else (name, errors[name]) for name in names]
    units = {str(t["unit"]) for t in dicts(result.get("traces")) if t.get("unit")}
    unit = f" ({units.pop()})" if len(units) == 1 else ""
    note = _axis(result) if shots else ""
    return Table(
        "Median error" + unit, ("method", *(f"{s:g}" for s in shots)) if shots else ("method", "error"), rows, note
    )


def per_block(result: dict[str, Any]) -> Table:
    """Methods by blocks of time."""
    said = {name: blocks or [] for name, blocks in (result.get("per_block") or {}).items()}
    count = max(map(len, said.values()), default=0)
    rows = [(name, *blocks, *[None] * (count - len(blocks))) for name, blocks in said.items()]
    metric = words(result.get("metric")) or "Score"
    note = f"{metric} of each column of what was decoded, in their order."
    return Table(f"{metric} by block of time", ("method", *(f"block {i + 1}" for i in range(count))), rows, note)


def gains(result: dict[str, Any]) -> Table:
    """Paired differences at each number of labels."""
    said: dict[str, dict[Any, dict[str, Any]]] = {}
    for key, (_, told, _) in GAINS.items():
        for p in dicts(result.get(key)):
            said.setdefault(told + pair_of(p), {})[p.get("shots")] = p
    shots = sorted({s for found in said.values() for s in found if finite(s)})
    rows = [(f"{s:g}", *(scored(found.get(s)) for found in said.values())) for s in shots]
    return Table("Paired differences by number of labels", ("labels", *said), rows, _axis(result))


def pair_of(point: dict[str, Any]) -> str:
    """Which two methods a paired difference is of, to follow a title; "" where the result does not name them."""
    return f", {words(point['model'])} minus {words(point.get('against'))}" if point.get("model") else ""


def _axis(result: dict[str, Any]) -> str:
    return f"Labels: {words(result['curve_axis'])}." if result.get("curve_axis") else ""


def differences(result: dict[str, Any]) -> Table:
    """The model minus each baseline, paired within animals."""
    rows = [(name, scored(one)) for name, one in (result.get("differences") or {}).items()]
    return Table("Pretrained minus baseline, within animals", ("baseline", "difference"), rows)


def components(result: dict[str, Any]) -> Table:
    """What the components of each tensor are like, one row for each tensor."""
    heads = ("explained", "p_explained", "sizes", "p", "agreement")
    rows = []
    for name, one in (result.get("components") or {}).items():
        groups = ", ".join(f"{person} {count}" for person, count in (one.get("communities") or {}).items())
        rows.append((name, one.get("rank"), *(one.get(k) for k in heads), groups))
    note = (
        "p: how often shifted activity explains as much, or has a component of that size. Halves agree: for each rank "
        "that was tried, from 1 on."
    )
    return Table(
        "Components",
        ("tensor", "rank", "explained", "p", "sizes", "p of sizes", "halves agree", "communities"), rows, note,
    )  # fmt: skip


def animals(result: dict[str, Any]) -> Table:
    """What each animal was tested on, and its score."""
    each, rows = result.get("per_subject") or {}, []
    for name, one in (result.get("animals") or {}).items():
        counts = (one.get(k) for k in ("neurons", "images", "presentations"))
        rows.append((name, Scored(each.get(name), one.get("ci")), *counts))
    metric = words(result.get("metric")) or "score"
    return Table("Animals", ("animal", metric, "neurons", "images", "presentations"), rows)


def regions(result: dict[str, Any]) -> Table:
    """What each region that was hidden scored, the worst first."""
    said = dicts(result.get("regions"))
    rows = [(words(one.get("name")), scored(one)) for one in said[:REGIONS]]
    note = f"The worst {REGIONS} of {len(said)} regions." if len(said) > REGIONS else ""
    return Table("R of hidden regions", ("region", "R"), rows, note)


def against_chance(result: dict[str, Any]) -> Table:
    """How far above chance each method is, and how easily chance does as well; of surrogates of the truth too."""
    rows: list[tuple[Cell, ...]] = [
        (words(m.get("name")), m.get("chance_corrected"), m.get("p"), m.get("p_least"), exchanged(m))
        for m in dicts(result.get("methods"))
        if "chance_corrected" in m or "p" in m
    ]
    drawn = result.get("surrogates") or {}
    if finite(drawn.get("p")):
        rows.append(("pretrained", None, drawn["p"], None, f"by {drawn.get('n')} surrogates of the truth, R as large"))
    note = "Above chance: 0 is guessing, 1 is no error. Smallest p: what guesses that are all right would have."
    return Table("Against chance", ("method", "above chance", "p", "smallest p", "p by"), rows, note)


def exchanged(said: dict[str, Any]) -> str:
    """How the p value of a result or a method came about; "" where it has none."""
    return OVER.get(words(said.get("p_over")), "by permutation") if finite(said.get("p")) else ""


def candidates(result: dict[str, Any]) -> Table:
    """Among how many people somebody was looked for."""
    said = result.get("candidates") or {}
    rows = [(words(said.get("hash")), said.get("n"), said.get("k"))] if said else []
    note = "Accuracies with another hash are of other people or other seconds: another task."
    return Table("Candidates", ("hash", "people", "first that count"), rows, note)
