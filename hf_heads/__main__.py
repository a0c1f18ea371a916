"""`python -m hf_heads`."""

import sys

from hf_heads.cli import main

sys.exit(main())
