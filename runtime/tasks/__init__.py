"""Tasks, which say what the outputs of a cloud graph mean: classification today."""
