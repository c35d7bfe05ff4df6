"""The Pulumi engine: finding it, calling it, reading its plans, recovering its state."""
