"""What can be asked of the gateway, as plain functions; routes only translate."""
