"""What a coordinator types."""
