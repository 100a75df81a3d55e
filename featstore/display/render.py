"""Render a page as one HTML file that opens without a network.

The plotting library is in the file, compressed. A content security policy allows the page's own scripts by their hashes
and no address, so that markup in a name cannot run and nothing is fetched.
"""

import base64
import gzip
import hashlib
from functools import cache
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from featstore.display.parts import Page

TEMPLATES = Path(__file__).parent / "templates"


def render(page: Page, *, more: Path | None = None) -> str:
    """The page as HTML. Equal pages give equal text.

    Args:
        more: folder with templates of further kinds of blocks, ``<kind>.html``, and their ``page.css`` and ``page.js``.
            Its script runs first; each time the plots are drawn, the document gets the event ``drawn``.
    """
    folders = [TEMPLATES] if more is None else [TEMPLATES, more]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The last folder first: its listeners must be in place before the page draws.
    scripts = [(folder / "page.js").read_text() for folder in reversed(folders)]
    packed, library_hash = _library()
    return environment.get_template("page.html").render(
        page=page,
        style="".join((folder / "page.css").read_text() for folder in folders),
        scripts=scripts,
        library=packed,
        script_hashes=[*map(_hash, scripts), library_hash],
    )


@cache
def _library() -> tuple[str, str]:
    """plotly.js, as gzip in base64 (2 MB in place of 5), and its hash as it will run."""
    code: str = get_plotlyjs()
    packed = gzip.compress(code.encode(), mtime=0)
    return base64.b64encode(packed).decode(), _hash(code)


def _hash(code: str) -> str:
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return f"'sha256-{digest}'"
