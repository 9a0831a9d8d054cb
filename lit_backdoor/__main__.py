"""``python -m lit_backdoor``."""

import sys

from lit_backdoor.cli import main

sys.exit(main())
