"""Find equal files and near duplicates, and test images in other parts."""
