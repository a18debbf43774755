"""One text recogniser (convolutions, LSTM, CTC) and how to train it; knows nothing of sweeps."""
