"""Kernels for processors with AVX-512, BF16 and VNNI, compiled where they run by numba: no compiler is needed.

    kinds, vectors, emit          vector code of sixteen lanes: its types, its arithmetic, memory and control flow
    e4m3                          floats of 8 bits, in registers
    compiled                      the loops around micro-kernels, compiled once per machine
    tiles, tiles_*                a few rows of activations against a panel of packed weights
    linear                        loops over the panels
    packing, packing_*            linear layers on tensors: weights in panels, rounded if asked, or as they are stored
    attention_tiles, _widening    sixteen slots of the pool against a group of query heads; slots of 8 bits
    attention                     loops over tokens and heads
    numbers, rows, rounding       norms, rotation into the pool, rounding to 8 bits
    likeliest                     how likely given tokens are, and the likeliest in their places
    memory                        weights on huge pages
    workspace                     what layers share: memory used again at every step, and programs run in one call
    support                       whether this machine runs them

A row's numbers never depend on the other rows: every sum has one order, whatever the batch, the threads or the chunks
of a prefill.
"""
