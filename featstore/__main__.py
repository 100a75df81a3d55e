"""Run the ``featstore`` command as ``python -m featstore`` or ``accelerate launch -m featstore extract``."""

import sys

from featstore.cli.main import main

sys.exit(main())
