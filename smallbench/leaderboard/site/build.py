"""Build the site from evaluated entries in a temporary folder, then rename it.

Equal entries give equal bytes: nothing here reads the clock. All text of submitters passes through
Jinja's escaping or a writer of JSON, CSV or XML; links are https or omitted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files as package_files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from smallbench import __version__
from smallbench.errors import DataError, UsageError
from smallbench.files import temporary_sibling
from smallbench.glue.tasks import TASKS
from smallbench.leaderboard import site
from smallbench.leaderboard.board import BOARDS, BoardName
from smallbench.leaderboard.entry import (
    schema,
)
from smallbench.leaderboard.evaluation import Evaluation
from smallbench.leaderboard.finding import Finding
from smallbench.leaderboard.guard import Failure, call_each
from smallbench.leaderboard.site import exports
from smallbench.leaderboard.site.board_page import board_page
from smallbench.leaderboard.site.entry_page import copy_files, entry_page
from smallbench.leaderboard.site.environment import environment_of_site
from smallbench.leaderboard.site.rows import METRICS, Row, rows, task_leads
from smallbench.leaderboard.text import show

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup

MANY_ENTRIES = 100
"""Number of entries from which several processes write the pages."""
MARKER = "leaderboard.json"
"""Its content marks a folder as a site."""
WRITTEN = {*(tab.page for tab in BOARDS.values()), "submit.html", "entries", "static"}
WRITTEN |= {MARKER, "leaderboard.csv", "entry.schema.json", "feed.xml"}
WRITTEN |= {f"{name}.tex" for name in BOARDS}
"""All files of a site. A folder with any other file is not replaced."""


def build_site(
    evaluations: Sequence[Evaluation], out: Path, *, site_url: str | None = None,
    is_sample: bool = False,
) -> list[Evaluation]:  # fmt: skip
    """Write the site to the folder `out`; an old site stays until the new one is complete.

    Returns the evaluations as shown: an entry that cannot be rendered is rejected and left out.
    `site_url`, the address of the hosted site, adds a feed and canonical links; `is_sample` marks
    the labels as generated samples. Raises `DataError` if `out` holds anything other than a site.
    """
    if site_url is not None:
        site_url = _checked_url(site_url)
    out = out.resolve()  # the folder itself is renamed, not a link to it
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = temporary_sibling(out)
    try:
        try:
            _write(evaluations, building, site_url=site_url, is_sample=is_sample)
        except Exception:
            evaluations = check_pages(evaluations)
            shutil.rmtree(building)
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
    return list(evaluations)


def check_pages(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Build a site of each entry alone, under limits; reject entries that fail as *page*."""
    accepted = [evaluation for evaluation in evaluations if not evaluation.rejected]
    found = dict(zip(map(id, accepted), call_each(_unshowable, accepted), strict=True))
    result = []
    for evaluation in evaluations:
        reason = found.get(id(evaluation), "")
        if isinstance(reason, Failure):
            reason = reason.reason
        if reason:
            finding = Finding("page", "rejected", f"it cannot be shown: {show(reason)}")
            evaluation = replace(evaluation, findings=(*evaluation.findings, finding), views={})
        result.append(evaluation)
    return result


def _unshowable(evaluation: Evaluation) -> str:
    with TemporaryDirectory() as folder:
        try:
            _write([evaluation], Path(folder) / "site", site_url="https://example.org",
                   is_sample=False)  # fmt: skip
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def _check_replaceable(out: Path) -> None:
    if Path.cwd().is_relative_to(out):  # the root too
        raise UsageError(
            f"--out={out} would replace the current directory; run the command from another one"
        )
    if not out.exists():
        return
    remedy = "choose another --out, or empty it"
    if not out.is_dir():
        raise DataError(f"{out} exists and is not a folder; {remedy}")
    names = {path.name for path in out.iterdir()}
    if foreign := sorted(names - WRITTEN):
        raise DataError(f"{out} has {foreign[0]!r}, which is not part of a site; {remedy}")
    if names and not _is_ours(out / MARKER):
        raise DataError(f"{out} exists, but its {MARKER} is not that of a site; {remedy}")


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
        raise UsageError(
            f"Invalid --site_url={site_url}: expected an address such as https://example.org/board"
        )
    return site_url.rstrip("/")


def _write(
    evaluations: Sequence[Evaluation], folder: Path, *, site_url: str | None, is_sample: bool
) -> None:
    views = {name: rows(evaluations, name) for name in BOARDS}
    rejected = [show(evaluation.folder.name) for evaluation in evaluations if evaluation.rejected]
    dates = [row.entry.date for found in views.values() for row in found]
    shared = {
        "site_url": site_url,
        "repository_url": site.REPOSITORY_URL,
        "is_sample": is_sample,
        "version": __version__,
        "newest": max(dates, default=None),
        "tasks": TASKS,
        "metrics": METRICS,
    }
    environment = environment_of_site()
    environment.globals.update(shared)

    _copy_static(folder / "static")
    for view, page in ((name, tab.page) for name, tab in BOARDS.items()):
        content = board_page(views, view)
        _page(environment.get_template("board.html"), folder, page, "", content)
    body = _markdown(environment)
    _page(environment.get_template("submit.html"), folder, "submit.html", "", {"body": body})
    _write_entries(views, folder, environment.get_template("entry.html"))
    texts = {
        MARKER: exports.json_text(views, rejected),
        "leaderboard.csv": exports.csv_text(views),
        "entry.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
    }
    for name in BOARDS:
        newest = max((row.entry.date for row in views[name]), default=None)
        texts[f"{name}.tex"] = exports.latex_text(views[name], BOARDS[name], newest=newest)
    if site_url is not None:
        texts["feed.xml"] = exports.atom_text(views, site_url=site_url)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_entries(views: exports.Views, folder: Path, template: Template) -> None:
    """Write each entry's page and files; a large board uses a process for each core."""
    leads = {name: task_leads(found) for name, found in views.items()}
    places: dict[str, dict[BoardName, Row]] = {}
    for view, of_view in views.items():
        for row in of_view:
            places.setdefault(row.slug, {})[view] = row

    def write(slug: str) -> None:
        found, place = places[slug], f"entries/{slug}"
        copied = copy_files(next(iter(found.values())).evaluation, folder / place)
        content = entry_page(found, views, copied)
        _page(template, folder, f"{place}/index.html", "../../", content)
        # A script, because a page of file:// cannot fetch.
        data = {"points": content["curve_data"]["points"],
                "leads": {name: leads[name].get(slug) for name in found}}  # fmt: skip
        script = json.dumps(data, separators=(",", ":"))
        script = f'smallbench.loaded("{slug}",{script})\n'
        (folder / place / "data.js").write_text(script, encoding="utf-8")

    if len(places) < MANY_ENTRIES:
        for slug in places:
            write(slug)
        return
    for failure in call_each(write, places):
        if isinstance(failure, Failure):
            raise DataError(failure.reason)


# ---- templates


def _page(
    template: Template, folder: Path, path: str, root: str, content: Mapping[str, Any]
) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(template.render(path=path, root=root, **content), encoding="utf-8")


def _markdown(environment: Environment) -> Markup:
    """Return `docs/submitting.md` as HTML; it is the project's own text."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    assert environment.loader is not None
    text, _, _ = environment.loader.get_source(environment, "submitting.md")
    html = MarkdownIt("commonmark").enable("table").render(text)
    # Wide parts scroll on their own, also by keyboard.
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
    styles = environment_of_site().get_template("styles.css").render()
    (target / "site.css").write_text(styles, encoding="utf-8")
