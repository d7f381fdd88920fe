"""What the rule costs, next to plain backprop and to its literal evaluation."""
