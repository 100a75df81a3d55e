"""The card of a store: what it is, where it comes from, what one may do with it, and how to cite it.

    statement.py    what only its authors can say: title, names, licences; kept in the card
    licences.py     licences in plain words, and what is known of well-known teachers
    survey.py       counts, sizes, skips and times of a store, read in bounded time
    escape.py       text from outside as Markdown and BibTeX
    text.py         parts of a manifest in words
    markdown.py     README.md; front.py, examples.py: its front matter and the code in it
    statistics.py   numbers that describe a field
    explore.py      the samples as a map with neighbours; pictures.py: small pictures of them
    findings.py     all that the page shows
    figures.py      plotly figures; page.py: the HTML page; templates/: what only this page has

The Markdown card needs the core packages only; the page needs the extra ``card``.
"""
