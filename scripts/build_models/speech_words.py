"""The words that the small speech model tells apart, and those that it learns to know as others."""

from pathlib import Path

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

OTHERS = tuple(Path(__file__).with_suffix(".txt").read_text().split())
"""English words that do not sound like a digit: neither "won" nor "free", "sick" or "ate" is among them."""

VOICES = tuple(
    (f"{language}{variant}", speed, pitch)
    for language, variant, speed, pitch in (
        ("en-us", "", 150, 45),
        ("en-us", "+m1", 165, 40),
        ("en-us", "+m3", 140, 55),
        ("en-us", "+m7", 175, 35),
        ("en-us", "+f1", 150, 50),
        ("en-us", "+f2", 170, 60),
        ("en-us", "+f4", 140, 45),
        ("en-gb", "", 160, 50),
        ("en-gb", "+m2", 150, 35),
        ("en-gb", "+m5", 175, 50),
        ("en-gb", "+f3", 155, 55),
        ("en-gb-scotland", "+m4", 150, 45),
        ("en-gb-x-rp", "+m6", 160, 40),
        ("en-gb-x-rp", "+f5", 145, 50),
        ("en-gb-x-gbclan", "", 165, 45),
        ("en-029", "+m2", 150, 50),
    )
)
"""espeak-ng's voices: name, words a minute, and pitch 0..99."""
