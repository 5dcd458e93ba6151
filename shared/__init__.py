"""What sites and server must agree on: configuration, messages, pose, data, privacy, anonymisation."""
