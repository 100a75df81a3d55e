"""Results for people: text for terminals, and HTML pages of one file each that open from disk without a network.

    text.py          tables, counts, sizes and times as text; needs no extra
    parts.py         data classes: page, section, table, plot, gallery
    style.py         colours, axes, names and maps shared by all figures (plotly)
    feature_map.py   t-SNE of features
    render.py        page -> HTML; templates/ holds its template, style and script

Pages need the extra ``card``. Used by ``featstore.card`` for stores and by ``distill.reports`` for runs.
"""
