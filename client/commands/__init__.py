"""What a hospital types."""
