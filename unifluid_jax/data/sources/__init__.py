"""Records of data sets in their formats."""
