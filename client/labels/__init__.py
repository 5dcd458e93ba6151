"""From frames without labels to labels: drafts that labelling tools import."""
