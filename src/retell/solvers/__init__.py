"""Faster ways to the same θ, each tested against `descend`, the reference."""
