"""How a federation comes into being: an authority, keys, and one archive for each machine (`wardpose provision`)."""
