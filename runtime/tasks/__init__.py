"""What the outputs of a cloud graph mean."""
