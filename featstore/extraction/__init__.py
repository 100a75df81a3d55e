"""Images and a frozen teacher -> a store. The only part that needs torch."""
