"""From a device to the service: the spool, and the sender that delivers what it holds."""
