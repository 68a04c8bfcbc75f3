"""Speed and peak memory of clipgguf, beside other programs; run as ``python -m benchmarks``."""
