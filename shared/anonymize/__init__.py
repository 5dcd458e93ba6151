"""Anonymisation at the site: desensitise, G_X and G_Y, public views, recovery under lock."""
