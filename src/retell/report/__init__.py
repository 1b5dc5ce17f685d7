"""What a fit has come to, in words and pictures."""
