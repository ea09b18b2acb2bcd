"""The gateway: one process per user that routes requests and scales runners."""
