"""From a page to one HTML file that opens anywhere, without a network.

The plotting library lies in the file, compressed. A content security policy allows the page's own two scripts by their
hashes and no address at all: a name with markup in it could not run, and nothing could be fetched.
"""

import base64
import gzip
import hashlib
from functools import cache
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from distill.pages.parts import Page

TEMPLATES = Path(__file__).parent / "templates"


def render(page: Page) -> str:
    """The page as HTML. Equal pages give equal text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "page.js").read_text()
    packed, library_hash = _library()
    return environment.get_template("page.html").render(
        page=page,
        style=(TEMPLATES / "style.css").read_text(),
        script=script,
        library=packed,
        script_hashes=[_hash(script), library_hash],
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
