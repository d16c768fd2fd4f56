"""Pruned networks used for other tasks by prompts and label mappings."""

from ._prompt import (
    Prompt,
    few_shot,
    frequency_mapping,
    linear_probe,
    prompt_images,
    visual_prompt,
)

__all__ = [
    "Prompt",
    "few_shot",
    "frequency_mapping",
    "linear_probe",
    "prompt_images",
    "visual_prompt",
]
