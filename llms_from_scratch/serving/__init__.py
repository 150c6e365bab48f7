"""A model as a service: many texts at a time, over the protocols that other programs speak."""
