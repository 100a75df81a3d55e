"""Pages of finished runs: one HTML file each, and the same data as CSV and JSON.

    run_files.py     read the folder of a run
    page_data.py     thumbnails, feature maps and the teacher's cost, written at the end of a run
    tables.py        one run as rows of plain values
    comparison.py    all runs of an OUT folder as rows of plain values
    figures.py       rows as plotly figures
    run_page.py      page of one run
    compare_page.py  page of all runs
    report.py        console table, results.csv, and the functions that write pages

HTML and the style of figures are in ``featstore.display``. Nothing here trains or needs a GPU; only ``page_data`` reads
images and the store. The name of the score and of all measures comes from each run's own record
(``distill.measures.score``).
"""
