"""Texts of several lines, rendered from the folder `templates` of a package."""

from __future__ import annotations

from typing import Any


def from_template(package: str, name: str, **values: Any) -> str:
    """Return the template `name` of a package with these values; HTML escapes them."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader(package),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(values)
