"""A text recogniser (convolutions, sequence encoder, CTC) and its training. Does not depend on `sweep`."""
