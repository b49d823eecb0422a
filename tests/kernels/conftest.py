"""Kernels run here in Triton's interpreter, which decides when Triton is first imported: this file comes before."""

import os
import sys

if "triton" not in sys.modules:
    os.environ.setdefault("TRITON_INTERPRET", "1")
