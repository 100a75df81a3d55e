"""HTML pages that are one file each and open from disk without a network.

    parts.py         what a page is made of
    style.py         the manner of all figures (plotly)
    feature_map.py   features as points in the plane
    render.py        page -> HTML; templates/ holds its template, style and script

Needs the extra ``card``. ``featstore.card`` draws stores with it, ``distill.reports`` finished runs.
"""
