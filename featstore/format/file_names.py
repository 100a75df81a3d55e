"""Names of files of a store that hold no rows."""

CARD_NAME = "README.md"


CARD_PAGE_NAME = "card.html"


SIGNATURE_NAME = "model.sig"


EXTRAS = (CARD_NAME, CARD_PAGE_NAME, SIGNATURE_NAME)  # optional files of a store
