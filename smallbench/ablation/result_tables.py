"""The results of an ablation as a record, as Markdown and as an HTML page.

A difference is that of a variant to the first one, seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from smallbench.ablation.outcomes import RunOutcome, to_record
from smallbench.ablation.paired_test import (
    MAX_NEEDED_SEEDS,
    SIGNIFICANCE,
    Comparison,
    paired_comparison,
)
from smallbench.ablation.plan import Design, PlannedRun, differing_measurement, warmup_caution
from smallbench.errors import DataError
from smallbench.estimate import Estimate, estimate
from smallbench.files import write_json, write_text
from smallbench.glue.tasks import task_named
from smallbench.report.page import Table, write_report
from smallbench.report.runs import read_recorded_run

NOTHING = "–"
METRICS = {"held_out_loss": ("Held-out loss", 4), "glue_mean": ("GLUE mean", 2)}
"""Measure → its title and decimals."""


@dataclass(frozen=True)
class Measured:
    """A variant by one measure."""

    values: Mapping[int, float]
    """By seed."""
    estimate: Estimate | None
    comparison: Comparison | None
    """To the first variant; None for the first itself, and if no run of both has a value."""


@dataclass(frozen=True)
class Results:
    """Everything that the tables are made of."""

    flops: float
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    outcomes: tuple[RunOutcome, ...]
    measures: Mapping[str, Mapping[str, Measured]]
    """Measure → variant."""
    protocol: str
    """How GLUE was scored; empty without it."""
    notes: tuple[str, ...]


def results_of(design: Design, outcomes: Sequence[RunOutcome]) -> Results:
    """Compare the variants by each measure that was taken."""
    measures: dict[str, dict[str, Measured]] = {}
    cautions: list[str] = []
    baseline, protocol = design.variants[0], design.scoring.protocol if design.scoring else ""
    for measure in METRICS:
        values = {
            variant: {
                outcome.seed: value
                for outcome in outcomes
                if outcome.variant == variant and (value := getattr(outcome, measure)) is not None
            }
            for variant in design.variants
        }
        if measure == "glue_mean" and not protocol:
            continue
        measures[measure] = {}
        for variant, own in values.items():
            caution, is_another = "", False
            if measure == "held_out_loss":
                caution, is_another = differing_measurement(design, baseline, variant)
            comparison = None
            if variant != baseline:
                comparison = _compared(values[baseline], own, caution if is_another else "")
            found = estimate(list(own.values())) if own else None
            measures[measure][variant] = Measured(own, found, comparison)
            cautions += [caution] if caution and not is_another else []
    return Results(
        design.flops, design.seeds, design.variants, tuple(outcomes), measures, protocol,
        (*cautions, *_warmups(design, outcomes), *_notes(len(design.variants), outcomes)),
    )  # fmt: skip


def _compared(first: Mapping[int, float], own: Mapping[int, float], reason: str) -> Comparison:
    if reason:
        return Comparison(None, None, None, reason)
    both = [seed for seed in own if seed in first]
    return paired_comparison([first[seed] for seed in both], [own[seed] for seed in both])


def _warmups(design: Design, outcomes: Sequence[RunOutcome]) -> list[str]:
    notes = []
    for variant, fraction in design.warmup_fractions.items():
        steps = max((o.steps or 0 for o in outcomes if o.variant == variant), default=0)
        if caution := warmup_caution(fraction, steps):
            notes.append(f"{variant}: {caution}")
    return notes


def _notes(num_variants: int, outcomes: Sequence[RunOutcome]) -> list[str]:
    notes = []
    for outcome in outcomes:
        if outcome.status != "done":
            notes.append(
                f"{outcome.variant} seed {outcome.seed} {outcome.status}: {outcome.reason}"
            )
        elif outcome.held_out_loss is None:
            notes.append(f"{outcome.variant} seed {outcome.seed}: its held-out loss is not finite")
    if notes:
        excluded = "Means and differences exclude those runs"
        if any(outcome.status not in {"done", "missing"} for outcome in outcomes):
            excluded += ", which favours unstable variants"
        notes.append(excluded)
    unlearned = sum(outcome.num_failed_finetunings for outcome in outcomes)
    if unlearned:
        notes.append(
            f"{unlearned} fine-tunings are no better than the most frequent answer; they count in "
            "the means"
        )
    others = num_variants - 1
    if others > 1:
        notes.append(
            f"{others} variants are compared to the first: over all of them together, a p-value "
            f"under {SIGNIFICANCE / others:.2g} is a finding at 5 % (Bonferroni)"
        )
    return notes


# Markdown


def tables_of(results: Results) -> list[Table]:
    """Return the table of each measure and that of the runs."""
    tables = []
    for measure, of_variant in results.measures.items():
        title, digits = METRICS[measure]
        rows = [_row(name, of_variant[name], digits) for name in results.variants]
        header = ("Variant", "Seeds", "Mean", "95 %", "Difference", "95 %", "p", "Seeds needed")
        better = "lower" if measure == "held_out_loss" else "higher"
        tables.append(Table(f"{title} ({better} is better)", header, rows))
    return [*tables, _runs_table(results)]


def _row(name: str, measured: Measured, digits: int) -> tuple[str, ...]:
    found, comparison = measured.estimate, measured.comparison
    if found is None:
        return (name, "0", *[NOTHING] * 6)
    cells = (name, str(found.num_values), f"{found.mean:.{digits}f}", _interval(found, digits))
    if comparison is None or comparison.difference is None:
        return (*cells, *[NOTHING] * 4)
    difference, p_value = comparison.difference, comparison.p_value
    needed = NOTHING
    if p_value is not None:
        is_many = comparison.needed_seeds is None
        needed = f"over {MAX_NEEDED_SEEDS:,}" if is_many else str(comparison.needed_seeds)
    return (
        *cells,
        f"{difference.mean:+.{digits}f}",
        _interval(difference, digits, sign="+"),
        NOTHING if p_value is None else _p(p_value),
        needed,
    )


def _interval(found: Estimate, digits: int, sign: str = "") -> str:
    if found.low is None or found.high is None:
        return NOTHING
    return f"{found.low:{sign}.{digits}f} to {found.high:{sign}.{digits}f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def _runs_table(results: Results) -> Table:
    tasks = list(dict.fromkeys(name for o in results.outcomes for name in o.tasks))
    glue = [task_named(name).title for name in tasks] + (["GLUE mean"] if results.protocol else [])
    rows = []
    for o in results.outcomes:
        numbers = [o.tasks.get(name) for name in tasks] + ([o.glue_mean] if glue else [])
        rows.append(
            (
                o.variant,
                str(o.seed),
                o.status,
                NOTHING if o.steps is None else f"{o.steps:,}",
                NOTHING if o.train_flops is None else f"{o.train_flops:.3g}",
                NOTHING if o.held_out_loss is None else f"{o.held_out_loss:.4f}",
                *(NOTHING if number is None else f"{number:.2f}" for number in numbers),
            )
        )
    header = ("Variant", "Seed", "Outcome", "Steps", "FLOPs", "Held-out loss", *glue)
    return Table("Runs", header, rows)


def sentences_of(results: Results) -> list[str]:
    """Return what must be known to read the tables."""
    seeds = ", ".join(map(str, results.seeds))
    found = [
        f"{results.flops:g} FLOPs for each pretraining, seeds {seeds}. Intervals are Student's t "
        f"over seeds. Differences are to {results.variants[0]}, seed by seed; p is that of the "
        "paired t-test. The interval covers the spread of pretraining seeds, not other corpora"
    ]
    if results.protocol:
        found.append(results.protocol)
    for measure, of_variant in results.measures.items():
        title, digits = METRICS[measure]
        for name in results.variants[1:]:
            comparison = of_variant[name].comparison
            assert comparison is not None
            found.append(_conclusion(title, digits, name, results, comparison))
    return [f"{sentence}." for sentence in dict.fromkeys([*found, *results.notes])]


def _conclusion(
    title: str, digits: int, name: str, results: Results, comparison: Comparison
) -> str:
    if comparison.p_value is None or comparison.difference is None:
        return f"{title} of {name}: no p-value, since {comparison.reason}"
    needed, have = comparison.needed_seeds, comparison.difference.num_values
    size = f"{comparison.difference.mean:+.{digits}f}"
    if needed is None:
        return f"{title} of {name}: {size} would need over {MAX_NEEDED_SEEDS:,} seeds"
    sentence = (
        f"{title} of {name}: a difference of {size} with this spread needs {needed} seeds to be "
        f"found at 5 % with a power of 80 %; this ablation has {have}"
    )
    return sentence + (", so the estimate is rough" if have < 10 else "")


def markdown(results: Results) -> str:
    """Return the tables and sentences as Markdown."""
    blocks = ["# Ablation", *sentences_of(results)[:1]]
    for table in tables_of(results):
        lines = [f"| {' | '.join(table.header)} |", f"|---|{'--:|' * (len(table.header) - 1)}"]
        lines += [f"| {' | '.join(row)} |" for row in table.rows]
        blocks += [f"## {table.title}", "\n".join(lines)]
    blocks.append("\n".join(f"- {sentence}" for sentence in sentences_of(results)[1:]))
    return "\n\n".join(block for block in blocks if block) + "\n"


def to_json(results: Results) -> dict[str, Any]:
    """Return everything as JSON; equal runs give equal content."""
    return {
        "schema_version": 1,
        "flops": results.flops,
        "seeds": list(results.seeds),
        "variants": list(results.variants),
        "protocol": results.protocol or None,
        "measures": {
            measure: {
                name: {
                    "estimate": None if m.estimate is None else asdict(m.estimate),
                    "comparison": None if m.comparison is None else asdict(m.comparison),
                    "values": {str(seed): value for seed, value in m.values.items()},
                }
                for name, m in of_variant.items()
            }
            for measure, of_variant in results.measures.items()
        },
        "runs": [to_record(outcome) for outcome in results.outcomes],
        "notes": list(results.notes),
    }


def write_results(results: Results, runs: Sequence[PlannedRun], out: Path) -> None:
    """Write `ablation.json`, `ablation.md` and `report.html`."""
    write_json(out / "ablation.json", to_json(results))
    write_text(out / "ablation.md", markdown(results))
    drawn = []
    for run in runs:
        try:
            drawn.append(replace(read_recorded_run(str(run.run_dir)), name=run.name))
        except DataError:  # it failed before its first record
            continue
    if drawn:
        write_report(
            drawn,
            out / "report.html",
            title="Ablation",
            tables=tables_of(results),
            sentences=sentences_of(results),
        )
