"""How much a GGUF file may hold: it bounds memory and time to read one, and what is planned is held to it, too."""

# Several times the header of the largest language models (a vocabulary of 262,144 tokens with scores, types and merges:
# 16 MB, 1.3 million values; some 1,000 tensors). At worst, strings of two characters, a value takes 13 bytes in the
# file and 104 in memory.
LARGEST_HEADER = 24 * 2**20
# In all arrays of the metadata together.
MOST_VALUES = 2**21
# Tensors, and metadata keys.
MOST_ENTRIES = 2**16
