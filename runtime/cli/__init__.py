"""The commands. No other room imports them."""
