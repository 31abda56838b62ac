"""What things are: models, policies, teachers, contexts, questions, verifiers, trajectories."""

from unmask_server.catalog.questions import parse_jsonl
from unmask_server.catalog.store import Catalog
from unmask_server.catalog.tokenizer import ModelTokenizer, check_token_ids
from unmask_server.catalog.types import QuestionSpec
from unmask_server.catalog.verifiers import Grader

__all__ = ["Catalog", "Grader", "ModelTokenizer", "QuestionSpec", "check_token_ids", "parse_jsonl"]
