"""Write, read, check and share stores of vision foundation model features.

Importing this package pulls in numpy, zarr and pydantic only: a team that wants rows of numbers needs no torch.
``featstore.extract`` and ``featstore.teachers`` are the parts that run a teacher.
"""

from featstore.errors import FeatstoreError
from featstore.manifest import Manifest, read_manifest
from featstore.reader import FeatureStore

__all__ = ["FeatstoreError", "FeatureStore", "Manifest", "__version__", "read_manifest"]

__version__ = "0.1.0"
