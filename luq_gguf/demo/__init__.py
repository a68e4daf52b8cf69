"""The embedded demo: a small trained checkpoint, the scenes it was trained on, and the show they make."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "Shapes-VL-11M"
"""A Qwen2.5-VL of 11 million weights that sees coloured shapes and digits, in the hub's form."""

FRESH_SEED = 1_000_000_000
"""Scenes from this seed on were never trained on."""
