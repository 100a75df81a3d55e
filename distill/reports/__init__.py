"""Pages about finished runs: one HTML file each, with everything in it, and the same as CSV and JSON.

    folder.py        a run's folder, read back
    keep.py          what only the end of a run can know: thumbnails, feature maps, the teacher's cost
    tables.py        what is shown, as rows of plain values
    figures.py       the same as plotly figures
    run_page.py      the page of one run
    comparison.py    all runs of an OUT folder, as rows
    compare_page.py  the page of them
    text.py          numbers as text

What a page is made of, the manner of its figures and the way to HTML are in ``featstore.pages``. Nothing here trains or
needs a GPU, and only ``keep`` looks at images and the store.
"""
