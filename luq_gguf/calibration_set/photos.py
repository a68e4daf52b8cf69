"""Photographs with a free licence; where each is from stands in photos/PROVENANCE.md."""

from __future__ import annotations

from functools import partial
from importlib import resources

from PIL import Image

from luq_gguf.calibration_set.item import Item

QUESTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "astronaut": (
        ("What color is the suit of the woman in this picture?", "Orange."),
        (
            "Describe the picture.",
            (
                "It is a portrait of a smiling astronaut with short hair in an orange spacesuit, with a helmet at the "
                "lower right. Behind her stand a flag of the United States on the left and a model of a space shuttle "
                "on the right."
            ),
        ),
    ),
    "shuttle-model": (
        (
            "What does this blurred picture show?",
            (
                "A model of a space shuttle, standing upright on a dark table. Its wings and boosters are white, its "
                "large fuel tank is brown."
            ),
        ),
    ),
    "photographer": (
        ("What is the man in the picture doing?", "He bends down to look through a camera on a tripod."),
        (
            "Is it a color picture, and where was it taken?",
            "No, it is in black and white. It was taken outdoors on a large lawn, with buildings in the distance.",
        ),
    ),
    "cat": (
        ("What animal is this, and what color are its eyes?", "It is a cat, a tabby, with green to yellow eyes."),
        ("In which direction does the animal look?", "Towards the right of the picture, past the camera."),
    ),
    "cat-eye": (("How many eyes of the animal can be seen?", "Two."),),
    "espresso": (
        ("What is in the cup?", "Coffee, an espresso by its looks."),
        (
            "Describe the cup and what lies beside it.",
            (
                "The cup is dark red outside and white inside. It stands on a saucer of the same red with a small "
                "metal spoon, on a table of brown wood."
            ),
        ),
    ),
    "coins": (
        ("How many coins are there, and how are they arranged?", "24 coins, in four rows of six."),
        (
            "What kind of coins are these?",
            "They look like ancient coins: they are not quite round, worn, and stamped with heads and figures.",
        ),
    ),
    "coins-row": (("How many coins lie in this row?", "Six."),),
    "deep-field": (
        (
            "What does this picture show?",
            "A view of deep space: many galaxies of different shapes, sizes and colors on a black background.",
        ),
        ("What is the color of the background?", "Black."),
    ),
    "rocket": (
        ("What stands in the middle of the picture?", "A white rocket on its launch pad."),
        (
            "What time of day is it, and how can you tell?",
            "It is dusk or dawn, or night: the sky is dark blue and the lamps around the launch pad are lit.",
        ),
    ),
    "pavilion": (
        ("What kind of building is this?", "A Chinese pavilion with several stories and curved, tiled roofs."),
        (
            "What can be seen around the building?",
            (
                "There are trees in front of it and to both sides, and behind it a wide lake in the haze under a "
                "pale blue sky."
            ),
        ),
    ),
    "pavilion-roof": (("Which colors do the roofs of this building have?", "Orange tiles with dark green edges."),),
    "dahlia": (
        ("What is the color of the flower?", "Orange."),
        (
            "What is sharp in this picture, and what is not?",
            (
                "The round flower in the middle is sharp. The leaves behind it are blurred, and a second flower is cut "
                "off by the lower edge."
            ),
        ),
    ),
    "retina": (
        (
            "What is shown in this medical image?",
            (
                "The inside of the back of an eye, the retina, with its blood vessels. The bright spot on the left is "
                "where the optic nerve leaves, and the dark spot in the middle is the macula."
            ),
        ),
        ("On which side is the bright spot?", "On the left."),
    ),
    "tissue": (
        (
            "What kind of image is this?",
            "A microscope image of stained tissue: brown glands between lighter tissue with many blue cell nuclei.",
        ),
    ),
    "bricks": (
        ("What is this surface made of?", "Of bricks with light joints between them."),
        ("Do the long sides of the bricks run up and down or left and right?", "Up and down."),
    ),
    "gravel": (("What covers the ground here?", "Gravel: many small stones with sharp edges."),),
    "grass": (
        (
            "Describe the texture in this picture.",
            (
                "It is a black and white picture of a lawn from above: short, thin blades of grass lie across others, "
                "with small leaves between them."
            ),
        ),
    ),
}


def items() -> list[Item]:
    """One for each file in photos/."""
    return [Item(f"photo-{name}", asked, partial(_read, name)) for name, asked in QUESTIONS.items()]


def _read(name: str) -> Image.Image:
    file = resources.files("luq_gguf.calibration_set") / "photos" / f"{name}.jpg"
    with file.open("rb") as handle:
        return Image.open(handle).convert("RGB")
