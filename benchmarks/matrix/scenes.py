"""What the models are shown: lines of text, speech-like and music-like sound, photographs. All of it drawn from a seed."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.matrix.subject import Floats

_TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you "
    "were her all she there would their we him been has when who will more no if out so said what up its about into than them "
    "can only other new some could time these two may then do first any my now such like our over man me even most made after "
    "also did many before must through back years where much your way well down should because each just those people how too "
    "little state good very make world still own see men work long get here between both life being under never day same another "
    "know while last might us great old year off come since against go came right used take three sensor device invoice total "
    "street number station temperature delivery pressure machine report window garden music river city light summer"
)
WORDS = _TEXT.split(" ")


def imaging(packages: Path, module: str) -> Any:
    """A module of Pillow, which lies beside the models."""
    if str(packages) not in sys.path:
        sys.path.append(str(packages))
    return importlib.import_module(f"PIL.{module}")


def sentence(generator: np.random.Generator, words: int) -> str:
    text = " ".join(generator.choice(WORDS, words).tolist())
    return str(text)


def text_image(
    packages: Path, text: str, size: tuple[int, int], generator: np.random.Generator, *, points: int = 30
) -> Any:
    """`text` on one line of an image of `size` (width, height), dark on light or light on dark, a little noisy."""
    image, drawing, font = (imaging(packages, name) for name in ("Image", "ImageDraw", "ImageFont"))
    dark, light = int(generator.integers(0, 70)), int(generator.integers(180, 256))
    ink, paper = (dark, light) if generator.random() < 0.8 else (light, dark)
    picture = image.new("RGB", size, (paper, paper, paper))
    place = (int(generator.integers(4, 12)), int(generator.integers(2, 8)))
    drawing.Draw(picture).text(place, text, fill=(ink, ink, ink), font=font.load_default(points))
    noise = generator.normal(0, generator.uniform(0, 8), (size[1], size[0], 3))
    return image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def channels_first(image: Any, *, centred: bool = True) -> Floats:
    """(1, 3, height, width), from 0 to 1, or from -1 to 1 if `centred`."""
    scaled = np.asarray(image, np.float32).transpose(2, 0, 1)[np.newaxis] / np.float32(255)
    return ((scaled - np.float32(0.5)) / np.float32(0.5) if centred else scaled).astype(np.float32)


@functools.cache
def photograph(packages: Path, name: str) -> Any:
    """One of scikit-image's photographs, in RGB."""
    return imaging(packages, "Image").open(packages / "skimage" / "data" / name).convert("RGB")


def view(packages: Path, name: str, size: int, generator: np.random.Generator, *, least: float = 0.5) -> Any:
    """A random part of a photograph, brighter or darker, perhaps mirrored, scaled to size x size."""
    image, operations, enhance = (imaging(packages, part) for part in ("Image", "ImageOps", "ImageEnhance"))
    whole = photograph(packages, name)
    side = int(min(whole.size) * generator.uniform(least, 1.0))
    left, top = (int(generator.integers(0, whole.size[axis] - side + 1)) for axis in (0, 1))
    part = whole.crop((left, top, left + side, top + side)).resize((size, size), image.Resampling.BILINEAR)
    part = enhance.Brightness(part).enhance(float(generator.uniform(0.6, 1.4)))
    return operations.mirror(part) if generator.random() < 0.5 else part


def speech(generator: np.random.Generator, seconds: float, rate: int) -> Floats:
    """Vowel-like sounds (a gliding voice through three formants) with pauses and hiss, in [-1, 1]; (samples,)."""
    count = int(seconds * rate)
    sound = np.zeros(count)
    at = int(generator.uniform(0, 0.3) * rate)
    while at < count:
        length = min(int(generator.uniform(0.12, 0.45) * rate), count - at)
        sound[at : at + length] += _vowel(generator, length, rate)
        at += length + int(generator.choice([0.02, 0.05, 0.6]) * generator.uniform(0.5, 1.5) * rate)
    sound += generator.normal(0, generator.uniform(0.0005, 0.01), count)
    return np.asarray(np.clip(sound, -1, 1), np.float32)


def _vowel(generator: np.random.Generator, length: int, rate: int) -> Any:
    time = np.arange(length) / rate
    pitch = generator.uniform(90, 220) * (1 + generator.uniform(-0.2, 0.2) * time / max(time[-1], 1e-3))
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.01 * np.sin(2 * np.pi * 5 * time))) / rate
    formants = (generator.uniform(300, 800), generator.uniform(900, 2200), generator.uniform(2300, 3000))
    sound = np.zeros(length)
    for harmonic in range(1, 30):
        frequency = harmonic * float(pitch.mean())
        if frequency < rate / 2:
            gain = sum(np.exp(-(((frequency - formant) / 120) ** 2)) for formant in formants) + 0.02
            sound += gain / harmonic**0.3 * np.sin(harmonic * phase)
    envelope = np.hanning(length) ** 0.4
    return generator.uniform(0.05, 0.5) * sound * envelope / max(np.abs(sound).max(), 1e-6)


def music(generator: np.random.Generator, samples: int, rate: int) -> Floats:
    """Struck notes with overtones, up to three at a time; (samples,)."""
    sound = np.zeros(samples)
    for _ in range(int(generator.integers(3, 9))):
        at = int(generator.integers(0, samples - rate // 4))
        time = np.arange(samples - at) / rate
        frequency = 440 * 2 ** ((int(generator.integers(40, 84)) - 69) / 12)
        decay = np.exp(-time * generator.uniform(1.5, 5)) * np.minimum(time * 200, 1)
        for overtone in range(1, 7):
            sound[at:] += (
                generator.uniform(0.2, 0.5) / overtone * decay * np.sin(2 * np.pi * overtone * frequency * time)
            )
    return np.asarray(sound / max(np.abs(sound).max(), 1e-6) * 0.8, np.float32)
