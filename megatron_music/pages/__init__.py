"""HTML pages with nothing in them that has to be fetched: one look, every text escaped, no script but their own.

A page is a Jinja template that extends ``base.html``, where head, style and policy stand.
"""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_BASE = Path(__file__).parent


def render(template: Path, script: str = "", filters: dict[str, Callable] | None = None, **values: Any) -> str:
    """The page of a template and what it shows.

    Texts go through the template's escaping, and the page's policy lets a browser run ``script`` alone, so that lyrics
    from the web stay lyrics. A filter is also a global, ``NAME_form``, which macros can be given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _BASE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    environment.globals.update({f"{name}_form": form for name, form in (filters or {}).items()})
    return environment.get_template(template.name).render(
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style()),
        **values,
    )


def style() -> str:
    """The style that all pages share, light or dark as the reader's system is."""
    return (_BASE / "style.css").read_text(encoding="utf-8")
