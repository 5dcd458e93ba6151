"""Human pose: skeletons, the TinyViT + SimCC model, losses, metrics and drawing."""
