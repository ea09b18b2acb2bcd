"""The Python side of what stands below a cell: traits hold its state, TypeScript draws it."""
