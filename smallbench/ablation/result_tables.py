"""The results of an ablation as a record, as Markdown and as an HTML page.

A difference is that of a variant to the first one, seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from smallbench.ablation.outcomes import RunOutcome
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
from smallbench.templates import from_template

NOTHING = "–"
METRICS = {"held_out_loss": ("Held-out loss", 4), "glue_mean": ("GLUE mean", 2)}
"""Measure → its title and decimals."""


@dataclass(frozen=True)
class Measured:
    """A variant by one measure."""

    estimate: Estimate | None
    comparison: Comparison | None
    """To the first variant; None for the first itself, and if no run of both has a value."""
    values: Mapping[int, float]
    """By seed."""


@dataclass(frozen=True)
class Results:
    """Everything that the tables are made of, as `ablation.json` has it."""

    flops: float
    seeds: tuple[int, ...]
    variants: tuple[str, ...]
    protocol: str | None
    """How GLUE was scored; None without it."""
    measures: Mapping[str, Mapping[str, Measured]]
    """Measure → variant."""
    runs: tuple[RunOutcome, ...]
    notes: tuple[str, ...]


def results_of(design: Design, outcomes: Sequence[RunOutcome]) -> Results:
    """Compare the variants by each measure that was taken."""
    measures: dict[str, dict[str, Measured]] = {}
    cautions: list[str] = []
    baseline, protocol = design.variants[0], design.scoring.protocol if design.scoring else None
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
            measures[measure][variant] = Measured(found, comparison, own)
            cautions += [caution] if caution and not is_another else []
    return Results(
        design.flops, design.seeds, design.variants, protocol, measures, tuple(outcomes),
        (*cautions, *_warmups(design, outcomes), *_notes(len(design.variants) - 1, outcomes)),
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


def _notes(num_others: int, outcomes: Sequence[RunOutcome]) -> list[str]:
    return from_template(
        __package__,
        "notes.txt",
        outcomes=outcomes,
        num_unlearned=sum(outcome.num_failed_finetunings for outcome in outcomes),
        num_others=num_others,
        significance=SIGNIFICANCE,
    ).splitlines()


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
    difference = None if comparison is None else comparison.difference
    p_value, needed = NOTHING, NOTHING
    if comparison is not None and comparison.p_value is not None:
        p_value = "< 0.0001" if comparison.p_value < 1e-4 else f"{comparison.p_value:.2g}"
        is_many = comparison.needed_seeds is None
        needed = f"over {MAX_NEEDED_SEEDS:,}" if is_many else str(comparison.needed_seeds)
    return (
        name,
        "0" if found is None else str(found.num_values),
        *_mean_and_interval(found, f".{digits}f"),
        *_mean_and_interval(difference, f"+.{digits}f"),
        p_value,
        needed,
    )


def _mean_and_interval(found: Estimate | None, style: str) -> tuple[str, str]:
    if found is None:
        return NOTHING, NOTHING
    if found.low is None or found.high is None:
        return format(found.mean, style), NOTHING
    return format(found.mean, style), f"{found.low:{style}} to {found.high:{style}}"


def _runs_table(results: Results) -> Table:
    tasks = list(dict.fromkeys(name for o in results.runs for name in o.tasks))
    glue = [task_named(name).title for name in tasks] + (["GLUE mean"] if results.protocol else [])
    rows = []
    for o in results.runs:
        numbers = [o.tasks.get(name) for name in tasks] + ([o.glue_mean] if glue else [])
        cells = [(o.steps, ","), (o.train_flops, ".3g"), (o.held_out_loss, ".4f")]
        cells += [(number, ".2f") for number in numbers]
        shown = [NOTHING if number is None else format(number, style) for number, style in cells]
        rows.append((o.variant, str(o.seed), o.status, *shown))
    header = ("Variant", "Seed", "Outcome", "Steps", "FLOPs", "Held-out loss", *glue)
    return Table("Runs", header, rows)


def sentences_of(results: Results) -> list[str]:
    """Return what must be known to read the tables."""
    lines = from_template(
        __package__, "sentences.txt", results=results, metrics=METRICS, max_seeds=MAX_NEEDED_SEEDS
    ).splitlines()
    return [f"{line}." for line in dict.fromkeys(lines)]


def markdown(results: Results) -> str:
    """Return the tables and sentences as Markdown."""
    tables, sentences = tables_of(results), sentences_of(results)
    return from_template(__package__, "ablation.md", tables=tables, sentences=sentences)


def to_json(results: Results) -> dict[str, Any]:
    """Return everything as JSON; equal runs give equal content."""
    content = {"schema_version": 1, **asdict(results)}
    for run in content["runs"]:
        del run["exit_code"]  # of this process
    return content


def write_results(results: Results, runs: Sequence[PlannedRun], out: Path) -> None:
    """Write `ablation.json`, `ablation.md` and `report.html`."""
    write_json(out / "ablation.json", to_json(results))
    write_text(out / "ablation.md", markdown(results))
    drawn = []
    for run in runs:
        with suppress(DataError):  # it failed before its first record
            drawn.append(replace(read_recorded_run(str(run.run_dir)), name=run.name))
    if drawn:
        write_report(
            drawn,
            out / "report.html",
            title="Ablation",
            tables=tables_of(results),
            sentences=sentences_of(results),
        )
