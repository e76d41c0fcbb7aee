"""Jinja's environment of the site: everything is escaped, and undefined names are errors."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files as package_files
from typing import TYPE_CHECKING

from smallbench.report.scale import short

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


@cache
def environment_of_site() -> Environment:
    """Return the environment; templates of the report's package begin with `report/`."""
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
    environment.filters["compact"] = compact
    environment.filters["count"] = lambda value: None if value is None else f"{value:,}"
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def compact(value: float) -> str:
    """Return a count as `charts.js` writes it: 7.47B."""
    return short(value).replace(" ", "").replace("G", "B")


def _unbroken(html: Markup) -> Markup:
    """Remove line breaks between tags; a browser would keep each as a node."""
    return type(html)(re.sub(r">\n\s*<", "><", html))
