"""Training beyond chapter 5: the loop, checkpoints, token files, several processes."""
