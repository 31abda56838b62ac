"""The embedded engine: Hugging Face transformers and torch in this process.

Importing this package imports torch; import it only where such an engine is opened.
"""

from unmask_server.engines.transformers.engine import TransformersEngine
from unmask_server.engines.transformers.stats import EngineStats

__all__ = ["EngineStats", "TransformersEngine"]
