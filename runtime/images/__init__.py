"""From any picture, folder or pattern to pixels."""
