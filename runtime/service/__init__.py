"""The cloud as a service for many devices: a core that knows no protocol, and HTTP in front."""
