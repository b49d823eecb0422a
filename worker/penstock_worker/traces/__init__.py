"""What the engine's step trace is good for: kept on disk by a running worker, summed up, and drawn.

file        written by the engine's process while it serves; read back after it, however that ended
load        a ragged load to trace, for a look at a model without a worker
timeline    from steps to rows: what became of each request, and when
picture     the timeline as SVG
summary     the same in figures
"""
