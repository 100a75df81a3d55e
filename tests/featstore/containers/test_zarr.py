"""The suite of all containers, for Zarr."""

from tests.featstore.backend_tests import BackendTests


class TestZarr(BackendTests):
    """See ``BackendTests``; what only Zarr has is in test_store.py, test_mapping.py and test_records.py."""

    container = "zarr"
