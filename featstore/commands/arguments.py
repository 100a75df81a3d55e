"""Types of arguments that several commands share."""


def positive(text: str) -> int:
    """A whole number above zero.

    Raises:
        ValueError: it is not; argparse makes it a message.
    """
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number
