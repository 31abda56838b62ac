"""SmolLM2-135M-Instruct as student and teacher, from a Python package."""
