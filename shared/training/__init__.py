"""The engine: per-unit gradients, the public part, noised steps and the local loop of a round."""
