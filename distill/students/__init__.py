"""Which student? Accuracy against latency and size, of students that were distilled over one store.

    pareto_front.py  candidates not dominated on cost and accuracy
    measure.py       the rows of an experiment as ONNX files, measured in turn
    tables.py        tables as JSON, CSV and Markdown
    page.py          the page students.html
    cli.py           the command ``distill students``

The students are trained by ``distill.experiments``: its rows are students. Importing this package is cheap.
"""
