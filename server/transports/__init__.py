"""server/transports."""
