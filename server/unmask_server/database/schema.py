"""Every table of Unmask, for SQLite and PostgreSQL alike.

The catalog (model, policy, teacher, question, verifier, trajectory) says what things are; the tree
(tree, node, node_stat, rollout, outcome) holds what was sampled; distribution and rollout_score
hold what was scored; growth holds the work, access_token who may ask for it. Token sequences are
blobs of little-endian uint32, those of edges shortened (`packing`).
Times are seconds since the epoch. Nothing is stored as NaN or infinity.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.types import JSON

from unmask_server.database.packing import GrowthName, PackedTokens

BigId = BigInteger().with_variant(Integer, "sqlite")
"""A 64-bit surrogate key that SQLite, too, assigns by itself."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# --------------------------------------------------------------------------------- the catalog

model = Table(
    "model",
    metadata,
    Column("fingerprint", String(40), primary_key=True, comment="weights, config and tokenizer"),
    Column("source", Text, nullable=False, comment="where it was loaded from: a directory"),
    Column("architecture", Text, nullable=False),
    Column("vocab_size", Integer, nullable=False, comment="columns of the logits"),
    Column("max_context", Integer, nullable=False, comment="prompt and generation, in tokens"),
    Column("tokenizer_fingerprint", String(40), nullable=False, comment="the id-to-token map"),
    Column("eos_ids", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("endpoints", JSON, nullable=False, server_default="[]", comment="SGLang servers of it"),
    Column("serving", JSON, comment="what they were found to be; null without any"),
)

policy = Table(
    "policy",
    metadata,
    Column("id", String(40), primary_key=True, comment="pol-<fingerprint>"),
    Column("name", String(200), unique=True),
    Column("model_fingerprint", ForeignKey("model.fingerprint"), nullable=False),
    Column("temperature", Float, nullable=False),
    Column("top_p", Float, nullable=False),
    Column("top_k", Integer, nullable=False),
    Column(
        "joint",
        Boolean,
        nullable=False,
        server_default=false(),
        comment="whether top_p is a share of all, not of what top_k left",
    ),
    Column("max_new_tokens", Integer, nullable=False, comment="counted from the question's end"),
    Column("stop_ids", JSON, nullable=False),
    Column("prompting", JSON, nullable=False, comment="how a question becomes prompt tokens"),
    Column("created_at", Float, nullable=False),
)

retention = Table(
    "retention",
    metadata,
    Column("policy_id", ForeignKey("policy.id"), primary_key=True),
    Column("days", Float, nullable=False, comment="its trees go when nothing came for so long"),
    comment="What `unmask-server prune --by-rules` goes by.",
)

teacher = Table(
    "teacher",
    metadata,
    Column("id", String(40), primary_key=True, comment="tea-<fingerprint>"),
    Column("name", String(200), unique=True),
    Column("model_fingerprint", ForeignKey("model.fingerprint"), nullable=False),
    Column("context", Text, nullable=False, comment="name of the context"),
    Column("context_template", Text, nullable=False, comment="Jinja over the question's fields"),
    Column("prompting", JSON, nullable=False),
    Column("control", String(20), comment="how it is made; null: its own model"),
    Column("base_id", String(40), comment="the teacher that a control is of"),
    Column("stored", String(200), comment="where its distributions come from; null: a model"),
    Column("created_at", Float, nullable=False),
)

verifier = Table(
    "verifier",
    metadata,
    Column("key", Integer, primary_key=True, comment="small, for the statistics' keys"),
    Column("id", String(40), unique=True, nullable=False, comment="ver-<fingerprint>"),
    Column("name", String(200), unique=True),
    Column("kind", String(40), nullable=False),
    Column("version", Integer, nullable=False, comment="of the grading code"),
    Column("options", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
)

question = Table(
    "question",
    metadata,
    Column("id", String(40), primary_key=True, comment="que-<fingerprint>"),
    Column("name", String(200), unique=True),
    Column("fields", JSON, nullable=False, comment="question, answer, solution, hint, ..."),
    Column("prompt_tokens", LargeBinary, comment="only where the prompt was given as tokens"),
    Column("verifier_key", ForeignKey("verifier.key"), nullable=False),
    Column("created_at", Float, nullable=False),
)

trajectory = Table(
    "trajectory",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("policy_id", ForeignKey("policy.id"), nullable=False),
    Column("question_id", ForeignKey("question.id"), nullable=False),
    Column("tokens", LargeBinary, nullable=False),
    Column("finish", SmallInteger, nullable=False, comment="0 stop, 1 length, 2 unknown"),
    Column("seed", BigInteger, comment="of the sampling; null if it was submitted"),
    Column("ordinal", Integer, comment="which of the samples of that seed"),
    Column("rollout_uid", LargeBinary(16), comment="its rollout in the tree; null if submitted"),
    Column("created_at", Float, nullable=False),
    Index(None, "policy_id", "question_id", "created_at", "id"),
    Index(None, "created_at", "id"),
)

trajectory_outcome = Table(
    "trajectory_outcome",
    metadata,
    Column("trajectory_id", ForeignKey("trajectory.id"), primary_key=True),
    Column("verifier_key", ForeignKey("verifier.key"), primary_key=True),
    Column("reward", Float, nullable=False),
    sqlite_with_rowid=False,
)

# ------------------------------------------------------------------------------------ the tree

tree = Table(
    "tree",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("policy_id", ForeignKey("policy.id"), nullable=False),
    Column("question_id", ForeignKey("question.id"), nullable=False),
    Column("version", BigInteger, nullable=False, comment="one more at every change"),
    Column("nodes", BigInteger, nullable=False, comment="so far; numbers the next one"),
    Column("rollouts", BigInteger, nullable=False, comment="so far; numbers the next one"),
    Column("tokens", BigInteger, nullable=False, comment="sampled, that is paid for"),
    Column(
        "rollouts_pruned",
        BigInteger,
        nullable=False,
        server_default="0",
        comment="the first ones, which are gone",
    ),
    UniqueConstraint("policy_id", "question_id"),
)

tree_verifier = Table(
    "tree_verifier",
    metadata,
    Column("tree_id", ForeignKey("tree.id"), primary_key=True),
    Column("verifier_key", ForeignKey("verifier.key"), primary_key=True),
    comment="The verifiers by which every rollout of the tree is graded.",
    sqlite_with_rowid=False,
)

# The ids of nodes and rollouts are the tree's id times 2**32 plus a number within the tree: they
# are known before the rows are written, and the rows of one tree lie together in every index.

node = Table(
    "node",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=False),
    Column("tree_id", ForeignKey("tree.id"), nullable=False),
    # Deferred, because a split makes a node the child of one that is written after it.
    Column(
        "parent_id",
        ForeignKey("node.id", deferrable=True, initially="DEFERRED"),
        index=True,
        comment="null at the root",
    ),
    Column(
        "fingerprint",
        LargeBinary(16),
        nullable=False,
        comment="of the prefix up to and including the edge's first token",
    ),
    Column("depth", Integer, nullable=False, comment="of the edge's last token; the root is 0"),
    Column("edge", PackedTokens, nullable=False, comment="tokens between the parent and here"),
    UniqueConstraint("tree_id", "fingerprint"),
)

node_stat = Table(
    "node_stat",
    metadata,
    Column("node_id", ForeignKey("node.id"), primary_key=True),
    Column("verifier_key", ForeignKey("verifier.key"), primary_key=True),
    Column("n", BigInteger, nullable=False, comment="rollouts valid all along the edge"),
    Column("reward_sum", Float, nullable=False),
    Column("truncated", BigInteger, nullable=False, comment="of them cut off by their limit"),
    Column("forced_n", BigInteger, nullable=False, comment="of them with the first token forced"),
    Column("forced_reward_sum", Float, nullable=False),
    sqlite_with_rowid=False,
)

rollout = Table(
    "rollout",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=False),
    Column("uid", LargeBinary(16), nullable=False, unique=True, comment="makes a retry harmless"),
    Column("tree_id", ForeignKey("tree.id"), nullable=False),
    Column(
        "start_node_id",
        ForeignKey("node.id"),
        nullable=False,
        comment="before the last forced token; the root if none was forced",
    ),
    Column("end_node_id", ForeignKey("node.id"), nullable=False, comment="spells its tokens"),
    Column("forced_depth", Integer, nullable=False, comment="generated tokens that were imposed"),
    Column("depth", Integer, nullable=False, comment="generated tokens in all"),
    Column("digest", LargeBinary(8), nullable=False, comment="of the tokens, to check the tree"),
    Column("finish", SmallInteger, nullable=False, comment="0 stop, 1 length"),
    Column("growth_id", GrowthName, comment="which growth paid for it; null for trajectories"),
    # In whole seconds, which take less room.
    Column("created_at", Float, nullable=False),
)

outcome = Table(
    "outcome",
    metadata,
    Column("rollout_id", ForeignKey("rollout.id"), primary_key=True),
    Column("verifier_key", ForeignKey("verifier.key"), primary_key=True),
    Column("reward", Float, nullable=False, comment="in [0, 1]"),
    sqlite_with_rowid=False,
)

# ---------------------------------------------------------------------------- what was scored

distribution = Table(
    "distribution",
    metadata,
    Column(
        "key", LargeBinary(16), primary_key=True, comment="hash of model, prompt, prefix and view"
    ),
    Column("ids", LargeBinary, nullable=False, comment="int32, likeliest first, then extra ids"),
    Column("logprobs", LargeBinary, nullable=False, comment="float32; -1e4 is probability zero"),
    Column("top_k", Integer, nullable=False, comment="how many of the ids are the likeliest"),
    Column("complete", Boolean, nullable=False, comment="whether the ids are the vocabulary"),
)

rollout_score = Table(
    "rollout_score",
    metadata,
    Column("rollout_id", ForeignKey("rollout.id"), primary_key=True),
    Column("source", LargeBinary(16), primary_key=True, comment="hash of a model and its prompt"),
    Column("logprobs", LargeBinary, nullable=False, comment="float32, of the sampled tokens"),
    sqlite_with_rowid=False,
)

# ------------------------------------------------------------------------------------ the work

growth_client = Table(
    "growth_client",
    metadata,
    Column("request_id", String(200), primary_key=True),
    Column("client", String(200), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("rollouts", BigInteger, nullable=False, comment="of the budget"),
    Column("tokens", BigInteger, nullable=False, comment="of the budget"),
    Column("rollouts_done", BigInteger, comment="sampled; null: as its growth says"),
    Column("tokens_done", BigInteger, comment="sampled; null: as its growth says"),
    Index(None, "client", "started_at"),
    comment="Who had what sampled in the last 24 hours, where that is counted.",
)

client_total = Table(
    "client_total",
    metadata,
    Column("client", String(200), primary_key=True),
    Column("rollouts", BigInteger, nullable=False, comment="sampled before `growth_client`"),
    Column("tokens", BigInteger, nullable=False, comment="sampled before `growth_client`"),
    comment="What clients had sampled more than a day ago.",
)

growth = Table(
    "growth",
    metadata,
    Column("id", String(40), primary_key=True, comment="gro-<hash of the request_id>"),
    Column("request_id", String(200), nullable=False, unique=True),
    Column("spec", JSON, nullable=False, comment="what is wanted, with ids for names"),
    Column("asked", JSON, comment="the spec that it was started with; null: not extended since"),
    Column("revision", Integer, nullable=False, server_default="0", comment="times extended"),
    Column("state", String(20), nullable=False, index=True),
    Column("error", Text),
    Column("rollouts_sampled", BigInteger, nullable=False),
    Column("tokens_sampled", BigInteger, nullable=False),
    Column("rollouts_pruned", BigInteger, nullable=False, server_default="0", comment="gone since"),
    Column("tokens_pruned", BigInteger, nullable=False, server_default="0"),
    Column("rollouts_cached", BigInteger, nullable=False, comment="found in the tree at the start"),
    Column(
        "rollouts_counted", BigInteger, nullable=False, server_default="0", comment="there are now"
    ),
    Column("rollouts_planned", BigInteger, nullable=False),
    Column("nodes", Integer, nullable=False, comment="that it grows"),
    Column("nodes_flat", Integer, nullable=False, comment="that it skips"),
    Column(
        "nodes_settled", Integer, nullable=False, server_default="0", comment="precise, or flat"
    ),
    Column("half_width", Float, comment="of the 90% interval of what it makes precise"),
    Column("next_halving", JSON, comment="rollouts and tokens to halve it: low, median, high"),
    Column("attempt", Integer, nullable=False, comment="how many servers worked on it before"),
    Column("owner", String(80), comment="which server process is working on it"),
    Column("lease_expires_at", Float, comment="another server may take it over after that"),
    Column(
        "turn", BigInteger, comment="its place in the line for its trees; null: it is not in it"
    ),
    Column("has_turn", Boolean, nullable=False, server_default=false(), comment="samples now"),
    Column("waits_for", String(40), comment="the growth whose turn it is"),
    Column("call_id", String(128), comment="request id of the call that started it"),
    Column("call_trace", String(64), comment="W3C traceparent of that call"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index(None, "created_at", "id"),
)

growth_subject = Table(
    "growth_subject",
    metadata,
    Column("growth_id", ForeignKey("growth.id"), primary_key=True),
    Column("policy_id", ForeignKey("policy.id"), primary_key=True),
    Column("question_id", ForeignKey("question.id"), primary_key=True),
    Index(None, "policy_id", "question_id"),
    Index(None, "question_id"),
    comment="whose trees a growth grows",
)

# --------------------------------------------------------------------------------------- access

access_token = Table(
    "access_token",
    metadata,
    Column("id", String(40), primary_key=True, comment="tok-<start of the hash>"),
    Column("name", String(200), unique=True, nullable=False),
    Column("hash", LargeBinary(32), unique=True, nullable=False, comment="SHA-256 of the token"),
    Column("scope", String(10), nullable=False, comment="read, grow or admin"),
    Column("rollouts_per_day", BigInteger, comment="budget; null: no limit"),
    Column("tokens_per_day", BigInteger, comment="budget; null: no limit"),
    Column("rollouts", BigInteger, comment="budget in all; null: no limit"),
    Column("tokens", BigInteger, comment="budget in all; null: no limit"),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, comment="null: never"),
    Column("revoked_at", Float, comment="null: it is not"),
    comment="Bearer tokens. The tokens themselves are kept nowhere.",
)
