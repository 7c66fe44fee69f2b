"""The load generator behind `penstock bench`: what it sends, how it measures, what it says.

Sending itself is compiled (`kernels/load.pyx`); here is what happens once a run, a window or a slice: resolving the
address, making requests, reading counters, judging stability, reporting. Modules that only reckon take readings and
give back values, without a clock or a connection: `histogram`, `arrivals`, `spans`, `perf_csv`, `plots`, `report`.
"""
