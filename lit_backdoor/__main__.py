"""``python -m lit_backdoor``."""

import sys

from lit_backdoor.cli.main import main

sys.exit(main())
