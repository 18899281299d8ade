"""``python -m tvm_coexec`` is the command ``tvm-coexec``."""

import sys

from .cli import main

sys.exit(main())
