"""What runners wrote: read by cursor, followed, found by request, bounded on the disk."""
