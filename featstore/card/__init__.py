"""The card of a store: README.md with content, origin, licences and citation, and an HTML page.

    statement.py    title, authors and licences as given by the store's authors; kept in the card
    licences.py     terms of licences; licences and citations of well-known teachers
    survey.py       counts, sizes, skipped images and times of a store, in bounded time
    escape.py       text from outside as Markdown and BibTeX
    text.py         fields, sources and titles as text
    markdown.py     README.md; front.py, examples.py: its front matter and code examples
    statistics.py   statistics of a field's vectors
    explore.py      map of the samples with neighbours; pictures.py: their thumbnails
    findings.py     all data of the page
    figures.py      plotly figures; page.py: the HTML page; templates/: its own templates
    selection_page.py   HTML page of chosen images

The Markdown card needs the core packages only; the page needs the extra ``card``.
"""
