"""`python -m hf_heads`."""

import sys

from hf_heads.cli.program import main

sys.exit(main())
