"""Speed and peak memory of clipgguf, side by side with the alternatives; run as ``python -m benchmarks``."""
