"""Triton kernels, each with a launcher of the same signature as its torch reference one folder up.

Nothing outside this package imports Triton. Under `TRITON_INTERPRET=1`, set before Triton is first imported, the same
kernels run on CPU tensors, without a GPU and without bfloat16 arithmetic.
"""
