"""The whole site from evaluated entries: rendered beside its place, then put there in one move.

Equal entries give equal bytes: nothing here looks at the clock. All text of submitters passes
through Jinja's escaping or a writer of JSON, CSV or XML; links are of https or not there.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbench import __version__
from smallbench.config import flatten
from smallbench.errors import DataError, UsageError
from smallbench.files import temporary_sibling
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard.entry import (
    ENTRY_FILE,
    LOG_FILE,
    PREDICTIONS_FOLDER,
    RUNS_FILE,
    TIERS,
    Entry,
    Tier,
    schema,
)
from smallbench.leaderboard.evaluation import Evaluation
from smallbench.leaderboard.scores import VIEWS, ViewName
from smallbench.leaderboard.site import charts, exports
from smallbench.leaderboard.site.rows import METRICS, Cell, Row, Usage, rows
from smallbench.leaderboard.submission import (
    MAX_BYTES,
    MAX_PREDICTIONS_BYTES,
    list_files,
    read_bytes,
)
from smallbench.report.scale import Scale, short

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup

PAGES: Mapping[ViewName, str] = {"robust": "index.html", "paper": "paper.html"}
MARKER = "leaderboard.json"
"""Its content tells a site from a folder that looks like one."""
WRITTEN = {*PAGES.values(), "submit.html", "entries", "static"}
WRITTEN |= {MARKER, "leaderboard.csv", "entry.schema.json", "feed.xml"}
"""All that a site's folder holds: with anything else in it, it is not only ours to replace."""
TIER_MEANINGS: Mapping[Tier, str] = {
    "reported": "quoted from elsewhere; nothing can be recomputed, so it has no rank",
    "claimed": "scores recomputed from predictions; some check could not be done",
    "logged": "and the training log, the compute and the code’s commit were all checked",
    "verified": "and the board’s keepers repeated it",
}
BUDGETS = ((24, "≤ 1 GPU-day"), (96, "≤ 4 GPU-days"), (168, "≤ 1 GPU-week"))
"""Of GPU-hours; four days is what a system of the paper took on a V100."""
SIZES = (15, 30, 60, 120)
"""Millions of parameters."""
CAPTIONS: Mapping[ViewName, str] = {
    "robust": "Entries ranked by protocol robust-v1, best AVG first",
    "paper": "Entries by their best dev scores, best AVG first",
}
NUM_COMPARED_ROWS = 8
"""Rows of the charts by task."""
LARGE = 100
"""Rows above which a browser lays out only those in sight."""


def build_site(
    evaluations: Sequence[Evaluation], out: Path, *, site_url: str | None = None,
    is_sample: bool = False,
) -> None:  # fmt: skip
    """Write the site to the folder `out`; what was there stays until all of it is written.

    `site_url`, where it will be hosted, gives it a feed and canonical links; `is_sample` says that
    the labels are generated stand-ins. Raises `DataError` where `out` holds what no build wrote.
    """
    if site_url is not None:
        site_url = _checked_url(site_url)
    out = out.resolve()  # the folder itself is renamed, not a link to it
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = temporary_sibling(out)
    try:
        _write(evaluations, building, site_url=site_url, is_sample=is_sample)
        if out.exists():
            old = temporary_sibling(out)
            out.rename(old)
            building.rename(out)
            shutil.rmtree(old)
        else:
            building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    if Path.cwd().is_relative_to(out):  # the root too
        raise UsageError(f"--out={out} would replace the folder you are in; run it from elsewhere")
    if not out.exists():
        return
    remedy = "choose another --out, or empty it"
    if not out.is_dir():
        raise DataError(f"{out} is there and no folder; {remedy}")
    names = {path.name for path in out.iterdir()}
    if foreign := sorted(names - WRITTEN):
        raise DataError(f"{out} holds {foreign[0]!r}, which no build of a site wrote; {remedy}")
    if names and not _is_ours(out / MARKER):
        raise DataError(f"{out} is there and no site, by its {MARKER}; {remedy}")


def _is_ours(marker: Path) -> bool:
    try:
        content = json.loads(marker.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"schema_version", "views"} <= content.keys()


def _checked_url(site_url: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(site_url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"--site_url={site_url} is no address such as https://example.org/board")
    return site_url.rstrip("/")


def _write(
    evaluations: Sequence[Evaluation], folder: Path, *, site_url: str | None, is_sample: bool
) -> None:
    views = {view: rows(evaluations, view) for view in VIEWS}
    rejected = [evaluation.folder.name for evaluation in evaluations if evaluation.rejected]
    dates = [row.entry.date for found in views.values() for row in found]
    shared = {
        "site_url": site_url,
        "is_sample": is_sample,
        "version": __version__,
        "newest": max(dates, default=None),
        "tasks": TASKS,
        "metrics": METRICS,
        "size": charts.SIZE,
    }
    environment = _environment()
    environment.globals.update(shared)

    _copy_static(folder / "static")
    for view, page in PAGES.items():
        content = _board_page(views, view)
        _page(environment.get_template("board.html"), folder, page, "", content)
    body = _markdown(environment)
    _page(environment.get_template("submit.html"), folder, "submit.html", "", {"body": body})
    template = environment.get_template("entry.html")
    places: dict[str, dict[ViewName, Row]] = {}
    for view, of_view in views.items():
        for row in of_view:
            places.setdefault(row.slug, {})[view] = row
    for slug, found in places.items():
        place = f"entries/{slug}"
        copied = _copy_files(next(iter(found.values())).evaluation, folder / place)
        content = _entry_page(found, views, copied)
        _page(template, folder, f"{place}/index.html", "../../", content)
        if content["curve"]:
            # A script, because a page of file:// may not fetch.
            points = json.dumps(content["curve_data"]["points"], separators=(",", ":"))
            script = f'smallbench.curve("{slug}",{points})\n'
            (folder / place / "curve.js").write_text(script, encoding="utf-8")
    texts = {
        MARKER: exports.json_text(views, rejected),
        "leaderboard.csv": exports.csv_text(views),
        "entry.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
    }
    if site_url is not None:
        texts["feed.xml"] = exports.atom_text(views, site_url=site_url)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


# ---- templates


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def load(name: str) -> str:
        package = "smallbench.report" if name.startswith("report/") else __package__
        path = package_files(package) / "templates" / name.removeprefix("report/")
        return path.read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def _unbroken(html: Markup) -> Markup:
    """Without the line breaks between tags, each of which a browser would keep as a node."""
    return type(html)(re.sub(r">\n\s*<", "><", html))


def _page(
    template: Template, folder: Path, path: str, root: str, content: Mapping[str, Any]
) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(template.render(path=path, root=root, **content), encoding="utf-8")


def _markdown(environment: Environment) -> Markup:
    """`docs/submitting.md` as HTML; it is the project's own text."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    assert environment.loader is not None
    text, _, _ = environment.loader.get_source(environment, "submitting.md")
    html = MarkdownIt("commonmark").enable("table").render(text)
    # Wide parts scroll by themselves, by keyboard too.
    html = html.replace("<pre>", '<pre tabindex="0">')
    html = html.replace("<table>", '<div class="scroll" tabindex="0"><table>')
    return Markup(html.replace("</table>", "</table></div>"))  # noqa: S704 - no submitter's text


def _copy_static(target: Path) -> None:
    source = package_files(__package__) / "static"
    with_vendor = {"": source, "vendor/": source / "vendor"}
    (target / "vendor").mkdir(parents=True)
    for prefix, folder in with_vendor.items():
        for file in folder.iterdir():
            if file.is_file():
                (target / prefix / file.name).write_bytes(file.read_bytes())
    styles = _environment().get_template("styles.css").render()
    (target / "site.css").write_text(styles, encoding="utf-8")


# ---- the board


def _board_page(views: Mapping[ViewName, list[Row]], view: ViewName) -> dict[str, Any]:
    found = views[view]
    fallback = [] if found or view != "robust" else views["paper"]
    shown = found or fallback
    note_list = list(dict.fromkeys(note for row in shown for note in row.entry.notes))
    numbers = {note: number for number, note in enumerate(note_list, start=1)}
    strips = charts.Strips.of(shown)
    return {
        "view": view,
        "rows": found,
        "fallback": fallback,
        "counts": {name: len(of_view) for name, of_view in views.items()},
        "strips": strips and _Strips(strips),
        "best": {
            name: max((row.cells[name].score for row in shown if name in row.cells), default=None)
            for name in TASKS
        },
        "note_list": note_list,
        "notes": {row.slug: [numbers[note] for note in row.entry.notes] for row in shown},
        "tiers": [tier for tier in reversed(TIERS) if any(row.tier == tier for row in shown)],
        "tier_meanings": TIER_MEANINGS,
        "large": LARGE,
        "budgets": BUDGETS,
        "sizes": SIZES,
        "captions": CAPTIONS,
        "facts": list(_facts(found, views["paper"])),
        "charts": [chart for key in charts.COSTS if (chart := charts.scatter(shown, key))],
        "by_task": charts.by_task(shown[:NUM_COMPARED_ROWS]),
        "records": charts.records(found),
        "record_chart": charts.record_chart(found),
        "data": {
            "view": view,
            "tasks": [
                {"key": name, "column": task.column, "title": task.title,
                 "metric": METRICS[task.ranking_metric]}
                for name, task in TASKS.items()
            ],
            "rows": [
                row.as_dict()
                | {
                    "leads": _bits(other.slug in row.leads for other in shown),
                    "command": _command(row.entry),
                    "notes": list(row.entry.notes),
                    "has_curve": (row.evaluation.folder / LOG_FILE).is_file(),
                }
                for row in shown
            ],
        },
    }  # fmt: skip


def _bits(flags: Iterable[bool]) -> str:
    """Flags as a hexadecimal number, the first its lowest bit: a quarter of a character each."""
    return f"{sum(1 << index for index, flag in enumerate(flags) if flag):x}"


class _Strips:
    """A view's strips, as the template draws them."""

    def __init__(self, strips: charts.Strips) -> None:
        self._strips = strips
        self._macro = _environment().get_template("macros.html").module.interval_svg  # type: ignore[attr-defined]

    def draw(self, row: Row) -> Any:
        """The AVG of a row with its interval, over the leader's."""
        assert row.average is not None
        scale, leader = self._strips.scale, self._strips.leader
        line, dots = charts.strip([row.average], row.interval, scale)
        lead = leader and (
            f"{100 * scale.place(leader.low):.1f}",
            f"{100 * (scale.place(leader.high) - scale.place(leader.low)):.1f}",
        )
        return self._macro(line, dots, lead, row.interval is None)


Fact = tuple[str, tuple[str, str], str]
"""Name, value with its link, and a remark."""


def _facts(ranked: Sequence[Row], paper: Sequence[Row]) -> Iterator[Fact]:
    """What a visitor wants to know first."""
    leading = [row for row in ranked if row.rank and row.rank.best == 1]
    if leading:
        first = leading[0]
        tied = f", tied with {len(leading) - 1} more" if len(leading) > 1 else ""
        yield "Best AVG", (f"{first.average:.2f}", _href(first)), f"{first.entry.name}{tied}"
        cheap = min(leading, key=lambda row: row.usage.hours or 0.0)
        yield (
            "Cheapest in first place",
            (f"{cheap.usage.hours:,.1f} GPU-h", _href(cheap)),
            cheap.entry.name,
        )
    elif paper and paper[0].average is not None:
        # A reference of which only AVG is known is none to beat.
        best = next((row for row in paper if row.cells and row.average is not None), paper[0])
        yield "Best so far, unranked", (f"{best.average:.2f}", _href(best)), _remark(best)
    num_measured = sum(row.tier != "reported" for row in paper)
    num_reported = len(paper) - num_measured
    yield "Entries", (str(len(paper)), ""), f"{num_measured} measured, {num_reported} reported"


def _remark(row: Row) -> str:
    return f"{row.entry.name}, {row.entry.model.num_parameters / 1e6:.1f}M parameters, {row.tier}"


def _href(row: Row) -> str:
    return f"entries/{row.slug}/index.html"


def _command(entry: Entry) -> str | None:
    return None if entry.provenance is None else shlex.join(entry.provenance.command)


# ---- an entry


@dataclass(frozen=True)
class Download:
    """A file beside an entry's page."""

    name: str
    what: str
    size: str


def _copy_files(evaluation: Evaluation, target: Path) -> tuple[list[Download], list[Any]]:
    """Put an entry's files where its page will be; what they are, and its training log."""
    target.mkdir(parents=True)
    names = list_files(evaluation.folder)
    whats = {
        ENTRY_FILE: "who, what, how",
        RUNS_FILE: "a line for each fine-tuning",
        LOG_FILE: "the pretraining, record by record",
    }
    found, log = [], []
    for name, what in whats.items():
        if name not in names:
            continue
        content = read_bytes(evaluation.folder / name, MAX_BYTES[name])
        (target / name).write_bytes(content)
        found.append(Download(name, what, _bytes(len(content))))
        if name == LOG_FILE:
            log = json.loads(b"[" + b",".join(content.splitlines()) + b"]")
    predictions = sorted(name for name in names if name.startswith(f"{PREDICTIONS_FOLDER}/"))
    if predictions:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as opened:
            for name in predictions:
                # Without a time, so that equal entries give equal bytes.
                content = read_bytes(evaluation.folder / name, MAX_PREDICTIONS_BYTES)
                opened.writestr(zipfile.ZipInfo(name), content)
        name = f"{PREDICTIONS_FOLDER}.zip"
        (target / name).write_bytes(archive.getvalue())
        what = f"{len(predictions)} files of answers on dev"
        found.append(Download(name, what, _bytes(len(archive.getvalue()))))
    return found, log


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{max(size / 1e3, 0.1):,.1f} kB"


def _entry_page(
    found: Mapping[ViewName, Row], views: Mapping[ViewName, list[Row]], files: tuple[Any, Any]
) -> dict[str, Any]:
    view, row = next(iter(found.items()))  # the one that it belongs to first
    entry, evaluation = row.entry, row.evaluation
    downloads, log = files
    points = charts.curve_points(log)
    curve = charts.loss_curve(points)
    findings = evaluation.findings
    counts = {v: sum(f.verdict == v for f in findings) for v in ("passed", "flagged", "not done")}
    return {
        "entry": entry,
        "tier": row.tier,
        "kind": row.kind,
        "home": PAGES[view],
        "links": list(_links(entry)),
        "figures": list(_figures(found, views)),
        "views": [_view_table(view, one) for view, one in found.items()],
        "curve": curve,
        "curve_data": {"name": entry.name, "points": points},
        "command": _command(entry),
        "provenance": _provenance(entry),
        "config": _config(entry),
        "details": list(_details(entry, row.usage)),
        "findings": findings,
        "check_summary": ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n),
        "downloads": downloads,
        "sha256": evaluation.sha256,
    }


def _links(entry: Entry) -> Iterator[tuple[str, str]]:
    links = entry.links
    weights = links.huggingface
    if weights and links.huggingface_revision:
        weights = f"{weights.rstrip('/')}/tree/{links.huggingface_revision}"
    named = {"Code": links.code, "Paper": links.paper, "W&B": links.wandb, "Weights": weights}
    for name, url in named.items():
        if url and url.startswith("https://"):
            yield name, url


def _figures(
    found: Mapping[ViewName, Row], views: Mapping[ViewName, list[Row]]
) -> Iterator[tuple[str, str, str]]:
    """The key figures: name, value, remark."""
    for view, row in found.items():
        if row.average is None:
            continue
        remark = "as reported, not ranked"
        if row.interval is not None:
            remark = f"{row.interval.low:.2f} to {row.interval.high:.2f}"
        name = "AVG" if view == "robust" or len(found) == 1 else "AVG, best of trials"
        yield name, f"{row.average:.2f}", remark
        if row.rank is not None and view == "robust":
            ranked = sum(other.rank is not None for other in views[view])
            yield "Rank", str(row.rank), f"of {ranked}"
    row = next(iter(found.values()))
    usage, model = row.usage, row.entry.model
    inner = model.num_parameters_without_embeddings
    remark = f"{inner / 1e6:.1f}M without embeddings" if inner else ""
    yield "Parameters", f"{model.num_parameters / 1e6:.1f}M", remark
    if usage.hours is not None and usage.tokens is not None:
        yield "GPU-hours", f"{usage.hours:,.1f}", f"{_compact(usage.tokens)} tokens"
    if usage.usd is not None:
        yield "Cost", f"${usage.usd:,.2f}", "of the machine’s time"
    if usage.kwh is not None:
        carbon = "" if usage.kg_co2 is None else f"{usage.kg_co2:,.1f} kg CO₂"
        yield "Energy", f"{usage.kwh:,.1f} kWh", carbon


@dataclass(frozen=True)
class Line:
    """A task in an entry's table."""

    task: Any
    cell: Cell
    strip: tuple[str, str]
    further: list[tuple[str, float]]


def _view_table(view: ViewName, row: Row) -> dict[str, Any]:
    # All tasks on one scale, in points from their score: what is wide is unsure.
    away = [
        abs(value - cell.score)
        for cell in row.cells.values()
        if cell.details
        for value in (cell.details.interval.low, cell.details.interval.high, *cell.details.runs)
    ]
    width = max(away, default=1.0) * 1.05
    lines = []
    for name, cell in row.cells.items():
        task, details = TASKS[name], cell.details
        scale = Scale(cell.score - width, cell.score + width)
        drawn = charts.strip(details.runs, details.interval, scale) if details else ("", "")
        further = [
            (_metric_name(key), value)
            for key, value in (details.metrics if details else {}).items()
            if key != task.ranking_metric
        ]
        lines.append(Line(task, cell, drawn, further))
    titles = {"robust": "Protocol robust-v1", "paper": "Paper view"}
    notes = {"robust": "mean over seeds", "paper": "best of the trials"}
    measured = row.entry.reported is None
    return {
        "name": view,
        "title": titles[view],
        "note": notes[view] if measured else f"as reported: {row.entry.reported.source}",  # type: ignore[union-attr]
        "measured": measured,
        "lines": lines,
        "average": row.average,
        "interval": row.interval,
    }


def _metric_name(key: str) -> str:
    metric, _, split = key.partition(" ")
    return f"{METRICS[metric]} {split.removeprefix('dev_')}".strip()


def _provenance(entry: Entry) -> list[tuple[str, Any]]:
    found = entry.provenance
    if found is None:
        return []
    return [
        ("Commit", f"{found.git_commit or 'unknown'}{', changed' if found.dirty else ''}"),
        ("smallbench", found.code_version),
        ("Image", found.image_digest),
        ("Configuration’s digest", found.config_digest),
        ("Log’s last link", found.train_log_sha256),
    ]


def _config(entry: Entry) -> list[tuple[str, str]]:
    if entry.provenance is None:
        return []
    flat = flatten(entry.provenance.config)
    return [(key, json.dumps(value, ensure_ascii=False)) for key, value in flat.items()]


def _details(entry: Entry, usage: Usage) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Sections of an entry as pairs of names and values; what is None is not shown."""
    model = entry.model
    yield (
        "Model",
        [
            ("Architecture", model.architecture),
            ("Objective", model.objective),
            ("Layers", model.num_hidden_layers),
            ("Hidden size", model.hidden_size),
            ("Attention heads", model.num_attention_heads),
            ("Feed-forward size", model.intermediate_size),
            ("Embedding size", model.embedding_size),
            ("Vocabulary", _count(model.vocab_size)),
            ("Positions", _count(model.max_position_embeddings)),
            ("From scratch", "yes" if model.from_scratch else "no"),
            ("Distilled from", model.distilled_from),
        ],
    )
    if entry.reported is not None:
        return
    measured = entry.measured
    data, pretrain, hardware = measured.data, measured.pretrain, measured.hardware
    energy, finetune = measured.energy, measured.finetune
    yield (
        "Data",
        [
            ("Corpus", data.name),
            ("Revision", data.revision),
            ("Unique tokens", _count(data.unique_tokens)),
            ("Epochs", f"{data.epochs:.2f}"),
            ("SHA-256", data.sha256),
        ],
    )
    stages = len(pretrain.ramps)
    yield (
        "Pretraining",
        [
            ("Steps", _count(pretrain.num_steps)),
            ("Batch × length", f"{pretrain.global_batch_size:,} × {pretrain.sequence_length:,}"),
            ("Ramps", f"{stages} stages" if stages else None),
            ("Tokens", _count(pretrain.num_tokens)),
            ("Precision", pretrain.precision),
            ("Seed", pretrain.seed),
            ("In steps", f"{pretrain.gpu_active_seconds / 3600:,.2f} h"),
            ("Altogether", f"{pretrain.wall_seconds / 3600:,.2f} h"),
        ],
    )
    carbon = energy.gco2_per_kwh
    yield (
        "Hardware and energy",
        [
            ("GPU", hardware.gpu),
            ("Memory", hardware.memory_bytes and f"{hardware.memory_bytes / 2**30:.0f} GiB"),
            ("Peak", hardware.peak_tflops and f"{hardware.peak_tflops:g} TFLOP/s"),
            ("Driver", hardware.driver),
            ("torch", hardware.torch),
            (
                "Price",
                None if hardware.usd_per_hour is None else f"${hardware.usd_per_hour:g} an hour",
            ),
            (
                "Energy",
                "unknown" if energy.kwh is None else f"{energy.kwh:.2f} kWh ({energy.method})",
            ),
            ("Carbon", None if carbon is None else f"{carbon:g} g CO₂ per kWh"),
        ],
    )
    yield (
        "Fine-tuning",
        [
            ("Protocol", finetune.protocol),
            ("Learning rates", ", ".join(f"{rate:g}" for rate in finetune.learning_rates)),
            ("Trials of a task, most", finetune.num_trials),
            ("Batch", finetune.batch_size),
            ("Longest input", finetune.max_length),
            ("Weight decay", finetune.weight_decay),
            ("Warm-up", f"{finetune.warmup_fraction:.0%}"),
            ("Clipping", finetune.clip_norm),
            ("Precision", finetune.precision),
        ],
    )


def _compact(value: float) -> str:
    """7.47B, as `charts.js` writes it."""
    return short(value).replace(" ", "").replace("G", "B")


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"
