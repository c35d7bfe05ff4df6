"""Everything for networks without a registry or without the Pulumi engine."""
