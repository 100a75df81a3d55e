"""Names of files beside the rows of a store."""

CARD_NAME = "README.md"


CARD_PAGE_NAME = "card.html"


SIGNATURE_NAME = "model.sig"


EXTRAS = (CARD_NAME, CARD_PAGE_NAME, SIGNATURE_NAME)
"""Files that a store may have beside what the format needs."""
