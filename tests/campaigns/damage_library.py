"""Damage module files against the C library alone, built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/campaigns/damage_library.py --minutes 30

First each byte of the header and of the table of sections, cut files and random damages; then, where there is clang,
libFuzzer for so many minutes, by a harness that mends checksums; see module_fuzzer.c.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from small_modules import chain, with_kernels

from tvm_coexec.runtime.device import open_device
from tvm_coexec.runtime.library import SOURCE_FOLDER

HARNESS = Path(__file__).with_name("module_fuzzer.c")
COMPILERS = ("clang", "clang-16", "clang-14")
RANDOM_DAMAGES = 10_000
OPTIONS = ("-std=c11", "-O1", "-g", "-pthread", "-fno-sanitize-recover=all")
LIBRARIES = ("-ldl", "-lm")


def build(compiler: str, program: Path, *options: str) -> Path:
    """The harness with the library's sources."""
    sources = map(str, sorted(SOURCE_FOLDER.glob("*.c")))
    subprocess.run([compiler, *OPTIONS, *options, str(HARNESS), *sources, "-o", str(program), *LIBRARIES], check=True)
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="for libFuzzer (default: 5)")
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        module, corpus = folder / "corpus" / "module", folder / "corpus"
        corpus.mkdir()
        with_kernels(chain(open_device(), 2, 5, 64)[0]).write(module)
        damages = build("cc", folder / "damages", "-fsanitize=address,undefined")
        subprocess.run([damages, module, folder / "raced", str(RANDOM_DAMAGES)], check=True)
        compiler = next((one for one in COMPILERS if shutil.which(one)), None)
        if compiler is None:
            sys.exit("there is no clang, whose libFuzzer damages files behind their checksums; `apt install clang`")
        fuzzer = build(compiler, folder / "fuzzer", "-fsanitize=fuzzer,address,undefined", "-DFUZZER")
        limits = (f"-max_total_time={int(60 * minutes)}", "-max_len=1000000", "-timeout=30", "-rss_limit_mb=4000")
        subprocess.run([fuzzer, *limits, corpus], check=True, env={**os.environ, "SEED_MODULE": str(module)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
