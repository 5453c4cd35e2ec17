"""The models of the matrix. A new one is one file here and one line below, and its package in `packages.txt`."""

from __future__ import annotations

from benchmarks.matrix.models import (
    detector,
    digit_reader,
    file_type,
    image_classifier,
    notes,
    sentence,
    sound_embedding,
    text_angle,
    text_finder,
    text_reader,
    voice,
)
from benchmarks.matrix.subject import Subject

SUBJECTS: tuple[Subject, ...] = (
    digit_reader.SUBJECT,
    image_classifier.SUBJECT,
    text_angle.SUBJECT,
    voice.SUBJECT,
    file_type.SUBJECT,
    sound_embedding.SUBJECT,
    notes.SUBJECT,
    text_reader.SUBJECT,
    detector.SUBJECT,
    text_finder.SUBJECT,
    sentence.SUBJECT,
)
