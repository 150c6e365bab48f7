"""Pretrained weights: readers of file formats, and the mapping of their names to our models."""
