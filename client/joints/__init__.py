"""From pictures and videos to joints, in the formats that laboratories read."""
