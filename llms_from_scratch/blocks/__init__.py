"""What the modern architectures share: each idea has one home, named after the idea.

``norms``: RMSNorm. ``rope``: rotary positions with every scaling. ``attention``: grouped queries.
``feed_forward``: gated layers and mixtures of experts. ``masks``: who may look at whom. ``linear``:
one token on all cores. ``config``: checked configurations. ``decoder``: the stack of blocks.
``sizes``: parameters and memory, counted.
"""
