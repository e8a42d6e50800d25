"""``python -m gpucache``."""

import sys

from gpucache.cli.main import main

sys.exit(main())
