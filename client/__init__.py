"""What runs inside a hospital: policy, local private training and the only door out."""
