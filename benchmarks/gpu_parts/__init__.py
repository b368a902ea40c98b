"""The parts of benchmarks/gpu.py: `measure(options, keep, deadline_s)` calls `keep` with each row as it is found."""
