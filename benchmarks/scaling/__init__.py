"""What `benchmarks/scale.py` measures, a file each."""
