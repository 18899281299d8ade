"""Compiles OpenCL files with the only device there is, and prints a line of JSON for each kernel. Runs in Mesa's root.

What the compiler itself prints goes to standard error, between lines that name the files.
"""

import json
import sys
from pathlib import Path

import pyopencl as cl

device = cl.get_platforms()[0].get_devices()[0]
context = cl.Context([device])
for name in sys.argv[1:]:
    print(f"FILE {name}", file=sys.stderr, flush=True)
    try:
        kernels = cl.Program(context, Path(name).read_text()).build(cache_dir=False).all_kernels()
        private = max(k.get_work_group_info(cl.kernel_work_group_info.PRIVATE_MEM_SIZE, device) for k in kernels)
        group = min(k.get_work_group_info(cl.kernel_work_group_info.WORK_GROUP_SIZE, device) for k in kernels)
        print(json.dumps({"file": name, "private_bytes": private, "largest_group": group}), flush=True)
    except cl.Error as error:
        print(json.dumps({"file": name, "error": str(error)[:300]}), flush=True)
