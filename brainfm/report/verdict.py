"""The first paragraph: what the numbers say and no more, in words that follow from scores and intervals alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from brainfm.report.inputs import dicts, simulated, source, task, words
from brainfm.report.style import METHODS, badge, bounds, escape, finite, kind_of, method, number, scored
from brainfm.report.tables import exchanged

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no clear difference", "cannot be judged"


def compare(score: Any, interval: Any, other: Any, other_interval: Any) -> str:
    """Which of two scores is higher: only intervals that lie wholly apart (touching is not apart) tell a difference."""
    mine, theirs = bounds(interval), bounds(other_interval)
    if not (finite(score) and finite(other) and mine and theirs):
        return UNKNOWN
    return BETTER if mine[0] > theirs[1] else WORSE if mine[1] < theirs[0] else SAME


def paired(result: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The paired comparison of a result's own method with the baseline `name`; None where there is none."""
    own = next((m.get("name") for m in dicts(result.get("methods"))), None)
    return next((p for p in dicts(result.get("pairs")) if own and (p.get("a"), p.get("b")) == (own, name)), None)


def against(result: dict[str, Any], name: str) -> str:
    """How the pretrained model of a result compares with the baseline `name`: by a paired test where there is one."""
    pair = paired(result, name)
    if pair and finite(pair.get("holm_p")) and finite(pair.get("difference")):
        return SAME if pair["holm_p"] > 0.05 else BETTER if pair["difference"] > 0 else WORSE
    baseline = result["baselines"][name] or {}
    return compare(result.get("score"), result.get("ci"), baseline.get("score"), baseline.get("ci"))


def named(name: str) -> str:
    """A baseline in words: its own name beside what it is, where the two differ."""
    kind = method(name)
    plain = {"untrained": ("untrained",), "linear": ("linear", "linear baseline"), "other": ()}
    return METHODS[kind] if name.lower() in plain.get(kind, ()) else f"{METHODS[kind]} ({name.replace('_', ' ')})"


def chance(result: dict[str, Any]) -> str:
    """How the score stands to chance."""
    pair, level = bounds(result.get("ci")), result.get("chance")
    if not (finite(level) and pair and finite(result.get("score"))):
        return "which cannot be judged against chance, because the score, its interval or the chance level is missing"
    if pair[0] > level:
        return f"above chance ({number(level)})"
    if pair[1] < level:
        return f"below chance ({number(level)})"
    return f"not clearly different from chance ({number(level)})"


def probability(result: dict[str, Any]) -> str:
    """The p value of a result that has one, and how it came about."""
    return f" (p = {result['p']:.3f} {exchanged(result)})" if finite(result.get("p")) else ""


def sentence(result: dict[str, Any]) -> str:
    """One result in plain words: score, chance, and the untrained, linear and other baselines."""
    baselines = result.get("baselines") or {}
    over = f" over {words(result['ci_over'])}" if result.get("ci_over") else ""
    told = (
        f"The pretrained model scores {scored(result.get('score'), result.get('ci'))} "
        f"({words(result.get('metric')) or 'score'}, interval{over}), {chance(result)}{probability(result)}."
    )
    opening = {
        BETTER: "It beats the {}",
        WORSE: "It does worse than the {}",
        SAME: "There is no clear difference from the {}",
        UNKNOWN: "It cannot be judged against the {}, because a score or an interval is missing",
    }
    for kind in ("untrained", "linear", "other"):
        of_kind = [name for name in baselines if kind_of(result, name) == kind]
        for name in of_kind:
            one = baselines[name] or {}
            told += f" {opening[against(result, name)].format(named(name))}, {scored(one.get('score'), one.get('ci'))}"
            told += f"{difference(result, name)}."
        if not of_kind and kind != "other":
            told += f" No {METHODS[kind]} was scored."
    return told + suspicion(result)


def difference(result: dict[str, Any], name: str) -> str:
    """The paired difference from a baseline and its p, in brackets; nothing where there is none."""
    pair = paired(result, name)
    if not pair or not finite(pair.get("difference")):
        return ""
    p = f", Holm p {pair['holm_p']:.3f}" if finite(pair.get("holm_p")) else ""
    return f" (paired difference {scored(pair['difference'], pair.get('ci'))}{p})"


def suspicion(result: dict[str, Any]) -> str:
    """A warning where permuted or shifted labels are decoded above chance; nothing otherwise."""
    for name, one in (result.get("baselines") or {}).items():
        pair = bounds((one or {}).get("ci"))
        if method(name) == "permuted" and pair and finite(result.get("chance")) and pair[0] > result["chance"]:
            return f" Caution: the control “{name}” also scores above chance, so more than the labels is decoded."
    return ""


def tally(results: Sequence[dict[str, Any]], kind: str) -> str:
    """How often the pretrained model is better, equal or worse than the baselines of a kind."""
    found = Counter(against(r, n) for r in results for n in r.get("baselines") or {} if kind_of(r, n) == kind)
    if not found:
        return f"No {METHODS[kind]} was scored."
    total = sum(found.values())
    parts = [
        f"beats it in {found[BETTER]}",
        f"shows no clear difference in {found[SAME]}",
        f"does worse in {found[WORSE]}",
    ]
    if found[UNKNOWN]:
        parts.append(f"cannot be judged in {found[UNKNOWN]}")
    comparisons = "comparison" if total == 1 else "comparisons"
    against_it = f"Against the {METHODS[kind]} ({total} {comparisons}) the pretrained model"
    return f"{against_it} {', '.join(parts[:-1])} and {parts[-1]}."


def paragraph(results: Sequence[dict[str, Any]], audit: dict[str, Any] | None) -> str:
    """The whole opening as HTML: the tally, one sentence per result, the audit and how to read it."""
    if not results:
        return "<p>There are no results yet, so nothing can be said about any model.</p>"
    made_up = sum(bool(r.get("simulated")) for r in results)
    parts = [tally(results, "untrained"), tally(results, "linear")]
    if made_up:
        which = "All results come" if made_up == len(results) else f"{made_up} of {len(results)} results come"
        parts.append(f"{which} from simulated data: they show that the pipeline works, not what it does on brains.")
    if audit is None:
        parts.append("No audit of leaks was given, so a leak between training and test cannot be ruled out.")
    elif audit.get("passed"):
        parts.append("The audit found nothing shared between training and test.")
    else:
        parts.append("The audit did not pass: training and test share data, and scores below cannot be trusted.")
    rows = []
    for result in results:
        note = f' <span class="note">Note: {escape(result["note"])}</span>' if result.get("note") else ""
        rows.append(
            f"<li><b>{escape(task(result))}</b> {badge(simulated(result))} "
            f'<span class="source">{escape(source(result))}</span><br>{escape(sentence(result))}{note}</li>'
        )
    reading = (
        "Numbers in brackets are 95 % intervals. “Beats” and “does worse” are said only where two intervals lie wholly "
        "apart or, for methods that were paired within people, where Holm’s p is 0.05 or less; else there is “no clear "
        "difference”, which is not proof that two methods are equal."
    )
    return f'<p>{escape(" ".join(parts))}</p><ul class="verdicts">{"".join(rows)}</ul><p class="note">{reading}</p>'
