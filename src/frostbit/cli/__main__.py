"""``python -m frostbit.cli``: the same as ``frostbit``."""

import sys

from frostbit.cli import main

sys.exit(main())
