"""The same image twice; test images among those for training."""
