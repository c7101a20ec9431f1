"""Digits of one's own: found in pictures, and what a net says of them. Nothing but the two commands imports this."""
