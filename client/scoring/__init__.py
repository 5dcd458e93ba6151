"""How good a model is on a site's own patients."""
