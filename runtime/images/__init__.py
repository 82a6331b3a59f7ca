"""Images: which files a folder or pattern names, decoding them, and preprocessing to pixels."""
