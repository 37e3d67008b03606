"""
Builds the optional extension `predictor._kernel`; pyproject.toml has everything else about the package.

Without a C compiler the build warns and goes on: the package then predicts with LightGBM's library. The same holds on
Windows, whose compiler has no vector types, and on free-threaded Python, where this code was never tested.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("native")  # builds run in this folder

# Without fused multiply-add, and with sums in the order of the code, results are the same bit for bit. CFLAGS of the
# environment come before these flags, for the linker too. If -ffast-math is among them, checks for NaN would find none,
# and the whole process would lose subnormal numbers; so it is undone.
EXACT = ["-O3", "-ffp-contract=off", "-fno-fast-math", "-fno-unsafe-math-optimizations"]

# One binary for Python 3.11 and later. The compiler's own vectorization is off: it makes the kernel's look-ups 1.5
# times slower. The code has its vectors written by hand.
kernel = Extension(
    "predictor._kernel",
    sources=sorted(map(str, NATIVE.glob("*.c"))),
    depends=sorted(map(str, NATIVE.glob("*.h"))),
    include_dirs=[str(NATIVE)],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    extra_compile_args=[
        *EXACT,
        *("-std=gnu11", "-fvisibility=hidden"),
        *("-fno-tree-vectorize", "-fno-tree-slp-vectorize"),
    ],
    extra_link_args=EXACT,
    py_limited_api=True,
    optional=True,
)
is_built = sys.platform != "win32" and not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[kernel] if is_built else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if is_built else {},
)
