"""Pruned networks used for other tasks by prompts and label mappings."""

from ._mapping import frequency_mapping
from ._probe import few_shot, linear_probe
from ._prompt import Prompt, prompt_images, visual_prompt

__all__ = [
    "Prompt",
    "few_shot",
    "frequency_mapping",
    "linear_probe",
    "prompt_images",
    "visual_prompt",
]
