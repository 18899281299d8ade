"""``python -m tvm_coexec`` is the command ``tvm-coexec``."""

import sys

from .processes import search_path

sys.path[:] = search_path()

from .cli import main  # noqa: E402 - what it imports is looked for there

sys.exit(main())
