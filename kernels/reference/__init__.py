"""The specification of the pure kernels, in numpy and plain Python: one module per kernel, clear before fast.

Every kernel is tested against its twin here and, where one exists, against an independent library.
"""
