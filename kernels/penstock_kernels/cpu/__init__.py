"""Kernels for processors with AVX-512, BF16 and VNNI, compiled where they run by numba: no compiler is needed.

    emit              vector code of sixteen lanes; micro-kernels
    compiled          the loops around them, compiled once per machine
    tiles             a few rows of activations against a panel of packed weights: bfloat16, float32, 8 and 4 bits
    linear            loops over the panels
    packing           linear layers on tensors: weights in panels, quantized if asked
    attention_tiles   sixteen slots of the pool against a group of query heads
    attention         loops over tokens and heads
    rows              norms, rotation into the pool, rounding to 8 bits
    memory            weights on huge pages
    workspace         what layers share: memory used again at every step, and programs of kernels run in one call
    support           whether this machine runs them

A row's numbers never depend on the other rows: every sum has one order, whatever the batch, the threads or the chunks
of a prefill.
"""
