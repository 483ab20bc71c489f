"""Pictures of head scores and rows."""
