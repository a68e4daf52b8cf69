"""Benchmarks of visual questions: their rows read, asked in their words, and scored by their published rules."""
