"""What a run leaves on disk: file names and lock, tables, checkpoints, environment; and a run read back."""
