"""One text recogniser (convolutions, LSTM, CTC) and how to train it; knows nothing of sweeps."""

import os

# Torch reads it before it first allocates: big tensors come in huge pages, each faulted in once instead of 512 times.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
