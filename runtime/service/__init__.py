"""The cloud as a service that answers many devices."""
