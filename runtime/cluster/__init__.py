"""The service and bulk decoding on a Ray cluster."""
