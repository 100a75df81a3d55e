"""Names for types of arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]  # any array
Rows = npt.NDArray[np.int64]  # row numbers, or other positions
Bytes = npt.NDArray[np.uint8]  # raw bytes
Mask = npt.NDArray[np.bool_]  # True or False for each entry
