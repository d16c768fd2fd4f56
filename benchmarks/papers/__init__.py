"""What papers claim, repeated at a small size on real data."""
