"""RetLab's own Triton kernels for one token of a few rows: how they are loaded, tried and launched, and each of them.

Every one has its plain form in `mixers` or `models`, which runs wherever the kernel does not.
"""
