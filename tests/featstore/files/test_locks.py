"""Messages of locks that another holds."""

from pathlib import Path

import pytest

from featstore.errors import StoreBusy
from featstore.files.locks import exclusive


def test_the_message_names_folder_and_holder(tmp_path: Path) -> None:
    """Also a folder whose name has braces."""
    store = tmp_path / "a {b} {}"
    store.mkdir()
    with exclusive(store), pytest.raises(StoreBusy) as caught, exclusive(store):
        pass
    assert str(store) in str(caught.value)
    assert "process " in str(caught.value)
