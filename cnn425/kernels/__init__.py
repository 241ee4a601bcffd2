"""The sums of the lecture as loops, compiled for the CPU: one file per idea, each loop beside its formula; `threads` runs them."""
