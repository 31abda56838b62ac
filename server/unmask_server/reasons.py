"""Why calls fail: every reason that a client may be told, in one place.

A reason is the `reason` of the google.rpc.ErrorInfo of an error, by its name. Names are part of the
contract: they are never renamed, and never come with another code. docs/errors.md is made from this
file by `make pages`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Retry(enum.Enum):
    """Whether the same call may be made again."""

    NO = "no"
    """It will fail again."""
    AFTER_CHANGE = "after a change"
    """It will succeed once something else was done first."""
    LATER = "later"
    """It may succeed by itself; RetryInfo says when to try."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reason means."""

    code: str
    """The canonical code that it comes with."""
    when: str
    """What happened."""
    do: str
    """What helps."""
    retry: Retry = Retry.NO
    details: tuple[str, ...] = ()
    """Messages of google.rpc beside ErrorInfo."""
    metadata: tuple[str, ...] = ()
    """Keys of ErrorInfo.metadata, as far as they are known."""


def _invalid(when: str, do: str, *details: str) -> Meaning:
    return Meaning("INVALID_ARGUMENT", when, do, details=details)


def _not_found(kind: str) -> Meaning:
    return Meaning(
        "NOT_FOUND",
        f"There is no such {kind}.",
        f"Look at the id or name; list what there is, or make the {kind} first.",
        Retry.AFTER_CHANGE,
        details=("ResourceInfo",),
    )


def _exists(when: str, do: str) -> Meaning:
    return Meaning("ALREADY_EXISTS", when, do, details=("ResourceInfo",))


def _precondition(when: str, do: str, *metadata: str) -> Meaning:
    return Meaning(
        "FAILED_PRECONDITION",
        when,
        do,
        Retry.AFTER_CHANGE,
        details=("PreconditionFailure",),
        metadata=metadata,
    )


def _unauthenticated(when: str, do: str) -> Meaning:
    return Meaning("UNAUTHENTICATED", when, do, Retry.AFTER_CHANGE)


def _exhausted(when: str, do: str) -> Meaning:
    return Meaning("RESOURCE_EXHAUSTED", when, do, Retry.LATER, details=("RetryInfo",))


def _unavailable(when: str, do: str) -> Meaning:
    return Meaning("UNAVAILABLE", when, do, Retry.LATER, details=("RetryInfo",))


class Reason(enum.Enum):
    """The reasons."""

    # requests that can never be right
    INVALID_FIELD = _invalid(
        "Fields of the request are wrong whatever is stored: they break a rule of the contract, "
        "contradict each other, or name what cannot be.",
        "Correct the fields that BadRequest names; `reason` there says which rule was broken.",
        "BadRequest",
    )
    MALFORMED_REQUEST = _invalid(
        "The bytes sent are no message of the method's type.",
        "Generate stubs from the contract again; look at what stands between client and server.",
        "BadRequest",
    )

    # things that are not there
    POLICY_NOT_FOUND = _not_found("policy")
    TEACHER_NOT_FOUND = _not_found("teacher")
    QUESTION_NOT_FOUND = _not_found("question")
    VERIFIER_NOT_FOUND = _not_found("verifier")
    TRAJECTORY_NOT_FOUND = _not_found("trajectory")
    ROLLOUT_NOT_FOUND = _not_found("rollout")
    GROWTH_NOT_FOUND = _not_found("growth")

    # things that are there already, and are others
    NAME_TAKEN = _exists(
        "The name belongs to another thing of this kind; ResourceInfo says to which.",
        "Choose another name, or use the thing that has this one.",
    )
    ALREADY_NAMED = _exists(
        "This very thing is registered under another name; ResourceInfo says which.",
        "Use that name, or leave it out.",
    )
    REQUEST_ID_REUSED = _exists(
        "The request_id was used for another growth.",
        "Choose a new request_id for each new growth; keep it for retries of the same request.",
    )
    OUTCOME_DIFFERS = _exists(
        "A rollout has another number under this verifier.",
        "Register a verifier with another `source` for other numbers.",
    )
    DISTRIBUTION_DIFFERS = _exists(
        "The stored teacher said something else at this node before.",
        "Register another stored teacher for another model, or another version of it.",
    )

    # things that do not go together
    TOKENIZER_MISMATCH = _precondition(
        "A teacher's tokenizer gives other ids to the same strings than the student's.",
        "Choose a teacher with the same tokenizer; the message says where they differ.",
        "policy",
        "teacher",
    )
    PROMPT_TOO_LONG = _precondition(
        "A prompt and its generation do not fit the model's context. Nothing is ever cut off.",
        "Shorten the question or what the teacher is shown, or lower max_new_tokens.",
        "prompt_tokens",
        "new_tokens",
        "max_context",
    )
    PROMPT_EMPTY = _precondition(
        "A prompt comes out empty.", "Give the question a text, or change the template."
    )
    CONTEXT_NOT_SHOWABLE = _precondition(
        "A question has no such field as a teacher's context shows, or its template fails on it.",
        "Register the question with the field, or choose another context.",
    )
    NO_CORRECT_ROLLOUT = _precondition(
        "The context `own_correct` shows a correct rollout of the student, and none is known.",
        "Sample trajectories of the question first.",
        "policy",
        "question",
    )
    VERIFIER_CANNOT_GRADE = _precondition(
        "A verifier can make nothing of a question's answer.",
        "Name another verifier, or register the question with an answer that it can read.",
        "verifier",
        "question",
    )
    VERIFIER_OUTDATED = _precondition(
        "A verifier is of another version of the grading code than this server has.",
        "Name the verifier of today's version, or register the question anew.",
        "verifier",
    )
    OUTCOMES_MISSING = _precondition(
        "Rollouts have no number of a verifier of kind EXTERNAL yet.",
        "ListRollouts with `missing_outcome_of` gives their texts; PutOutcomes takes the numbers.",
        "verifier",
    )
    VERIFIER_IS_EXTERNAL = _precondition(
        "A growth was asked for under a verifier of kind EXTERNAL, which grades nothing by itself.",
        "Grow under another verifier, give the numbers by PutOutcomes, then ask.",
        "verifier",
    )
    LIBRARY_MISSING = _precondition(
        "The server was installed without a library that this needs.",
        "Have the extra installed that the message names.",
        "extra",
    )
    MODEL_UNREADABLE = _precondition(
        "A model's directory cannot be read any more.",
        "Put it back where it was, or register the model again from where it is.",
        "model",
    )
    MODEL_CHANGED = _precondition(
        "A directory or an SGLang server holds another model by now than was registered.",
        "Register a new policy or teacher for the new model; numbers of the two are never mixed.",
    )
    MODEL_CANNOT = _precondition(
        "The model refuses the request, e.g. for an id out of range.",
        "See the message; ask for something that the model can do.",
    )
    SERVED_MODEL_DIFFERS = _precondition(
        "SGLang servers run something else than the directory holds, or cannot be used.",
        "Start them on this model, as docs/teachers.md says.",
    )
    ENDPOINTS_TOO_NOISY = _precondition(
        "SGLang servers repeat their own log-probabilities worse than the server's threshold.",
        "Run the same weights and precision on all of them, or register with `allow_noisy`.",
    )
    TEACHER_NOT_STORED = _precondition(
        "Distributions were put for a teacher that is a model.",
        "Register a stored teacher (RegisterTeacherRequest.stored) and put them there.",
        "teacher",
    )
    STORED_TEACHER_LIMITED = _precondition(
        "A loss needs more of a stored teacher than what is stored: another temperature than 1, or "
        "single tokens' terms.",
        "Ask for the loss at temperature 1 and without token_clip, or leave the teacher out.",
        "teacher",
    )
    GROWTH_ENDED = _precondition(
        "The growth has ended, so it can be neither paused nor resumed.",
        "ExtendGrowth goes on with it.",
        "growth",
        "state",
    )
    SAMPLING_DIFFERS = _precondition(
        "Generations to be imported were sampled with other settings than the policy's.",
        "Register a policy with the trainer's settings.",
        "policy",
    )
    GENERATIONS_DIFFER = _precondition(
        "Generations to be imported are not what the policy's model gives: another checkpoint's, "
        "or after another prompt.",
        "Register the checkpoint that made them; compare prompts with PreviewPrompt.",
        "policy",
    )
    PROMPT_UNKNOWN = _precondition(
        "A generation to be imported has a prompt that is no question's for the policy.",
        "Register the questions first; compare prompts with PreviewPrompt.",
        "policy",
    )
    PROMPT_AMBIGUOUS = _precondition(
        "A generation to be imported has a prompt that several questions share.",
        "Name the ones that are meant in `questions`.",
    )
    GENERATION_INCOMPLETE = _precondition(
        "It is not known which tokens a generation to be imported has, or how it ended.",
        "Give token ids and finish_reason; see the message.",
    )
    RECORD_UNDESCRIBED = _precondition(
        "A record to be imported refers to something that neither the server nor the request has.",
        "Import the whole export, its first parts first.",
        "kind",
        "name",
    )
    ROLLOUT_DIFFERS = _precondition(
        "A trajectory to be imported is a rollout that has other tokens here.",
        "Leave the trajectory out: engines differ in their last digits, and what is here stays.",
        "rollout",
    )

    # who calls, and what they may
    CREDENTIALS_MISSING = _unauthenticated(
        "The call does not say who makes it, and this server wants to know.",
        "Send the metadata `authorization: Bearer TOKEN`, once; ask the operator for a token.",
    )
    CREDENTIALS_INVALID = _unauthenticated(
        "What the call says of who makes it does not hold: no such token, a wrong signature or "
        "audience, claims that are missing.",
        "Look at the token, and at whether it is for this server; the message says what is wrong.",
    )
    CREDENTIALS_EXPIRED = _unauthenticated(
        "The token was good until a time that has passed.", "Get a new one."
    )
    CREDENTIALS_REVOKED = _unauthenticated(
        "The operator has ended the token.", "Ask the operator for another one."
    )
    SCOPE_MISSING = Meaning(
        "PERMISSION_DENIED",
        "Who calls is known, and may not make this call.",
        "Ask the operator for a token of the scope that the metadata names; where certificates say "
        "who calls, the setting is `tls_client_scope`.",
        Retry.AFTER_CHANGE,
        metadata=("scope",),
    )
    SOURCE_NOT_ALLOWED = Meaning(
        "PERMISSION_DENIED",
        "A directory or a host that the request names is none that requests may name here.",
        "Use another one, or ask the operator to list it in the setting that the metadata names.",
        Retry.AFTER_CHANGE,
        details=("BadRequest",),
        metadata=("setting",),
    )

    # limits
    BUDGET_SPENT = Meaning(
        "RESOURCE_EXHAUSTED",
        "The caller has had the rollouts or tokens that its token allows in all.",
        "Ask the operator for a token with more; waiting does not help.",
        Retry.AFTER_CHANGE,
    )
    QUOTA_EXCEEDED = _exhausted(
        "The client has had the rollouts or tokens of its day.",
        "Wait as long as RetryInfo says, or ask the operator for more.",
    )
    TOO_MANY_CALLS = _exhausted(
        "The client has as many calls running, or streams open, as one may have at once.",
        "Wait for one to end; make fewer at once; close streams that nobody reads.",
    )
    RATE_LIMITED = _exhausted(
        "The client makes calls more often than one may, or credentials from its address failed "
        "too often.",
        "Wait as long as RetryInfo says; ask for more at once, e.g. for whole trajectories. Look "
        "for who sends tokens that do not hold.",
    )
    ANSWER_TOO_LARGE = Meaning(
        "RESOURCE_EXHAUSTED",
        "The answer has more bytes than the server sends (`max_message_mib`). What the call did is "
        "kept.",
        "Ask for less at once; docs/clients.md says for each method how.",
    )
    DATABASE_FULL = _exhausted(
        "The database has no room left. What was acknowledged is kept.",
        "Tell the operator: free space, or prune (`unmask-server prune`).",
    )

    # what passes by itself
    ENGINE_UNAVAILABLE = _unavailable(
        "A model that is needed cannot be started or does not answer.",
        "Try again; the message says which one, so that the operator can look.",
    )
    ISSUER_UNAVAILABLE = _unavailable(
        "The keys of the issuer of the caller's token cannot be fetched.",
        "Try again; tell the operator if it lasts.",
    )
    DATABASE_UNAVAILABLE = _unavailable(
        "The database cannot be reached, is busy, or cannot be written now.",
        "Try again. The call may have been carried out; repeating it is harmless.",
    )
    SERVER_STOPPING = _unavailable(
        "The server stops or restarts. What was begun goes on at another server, or after it.",
        "Make the call again: to watch a growth, watch it anew.",
    )
    CALL_TOO_LONG = Meaning(
        "DEADLINE_EXCEEDED",
        "The call took longer than the server lets one of its kind take.",
        "Make it again: what it sampled and scored is kept. Or ask for less at once.",
    )
    DATABASE_SLOW = Meaning(
        "DEADLINE_EXCEEDED",
        "A statement took longer than the server lets one take.",
        "Ask for less at once.",
    )
    UNFORESEEN = Meaning(
        "INTERNAL",
        "A fault of the server. Nothing that a client sends should cause it.",
        "Report it with the server's log of that time.",
    )

    @classmethod
    def not_found(cls, kind: str) -> Reason:
        """The one for a kind of thing, e.g. `policy`."""
        return cls[f"{kind.upper()}_NOT_FOUND"]
