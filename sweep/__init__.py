"""Many trials of the recogniser, side by side."""
