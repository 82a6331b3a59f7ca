"""The feature file, entropy tables and bundles: all that both ends must agree on, byte for byte."""
