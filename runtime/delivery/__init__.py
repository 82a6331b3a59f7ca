"""From a device to the service: a spool and a sender that lose nothing."""
