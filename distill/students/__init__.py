"""Which student? Accuracy against latency and size, of students that were distilled over one store.

    front.py       who is beaten by nobody
    measured.py    the rows of an experiment as files, measured in turn
    tables.py      the same as JSON, CSV and Markdown
    page.py        the same as a page

The students are trained by ``distill.experiments``: its rows are students. Importing this package is cheap.
"""
