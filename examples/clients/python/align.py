"""An alignment from the contract alone: gRPC, and stubs generated from proto/.

    python align.py          # see docs/clients.md for what comes before

Environment: UNMASK_ADDRESS; UNMASK_TOKEN and UNMASK_TLS_CA (a file) where the server wants them.
"""

import json
import os
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from unmask.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    diagnosis_pb2,
    diagnosis_pb2_grpc,
    growth_pb2,
    growth_pb2_grpc,
)

ADDRESS = os.environ.get("UNMASK_ADDRESS", "localhost:50051")
MODELS = os.environ.get("UNMASK_MODELS", "examples/models")  # where the server finds them
SECONDS = 30  # the deadline of a call

# Every call of the contract may be repeated: what is registered is found again, what is sampled has
# a seed or a request_id. UNAVAILABLE says that repeating helps.
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "3s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

QUESTION = "Tom has 12 plums. First he finds 8, then he sells 9. How many plums does he have now?"
PREFIX = "first, 12 + 8 ="  # what the student has written when the token comes that we ask about


def connect() -> grpc.Channel:
    """A channel: with TLS if there is a certificate to trust, with a token if there is one."""
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    authority = os.environ.get("UNMASK_TLS_CA")
    token = os.environ.get("UNMASK_TOKEN")
    if not authority:
        if token:
            sys.exit("UNMASK_TOKEN would be sent in the clear: give UNMASK_TLS_CA, too")
        return grpc.insecure_channel(ADDRESS, options)
    with open(authority, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    if token:
        credentials = grpc.composite_channel_credentials(
            credentials, grpc.access_token_call_credentials(token)
        )
    return grpc.secure_channel(ADDRESS, credentials, options)


def explain(error: grpc.RpcError) -> str:
    """What the server says of an error: its code, its reason, the fields, when to try again."""
    lines = [f"{error.code().name}: {error.details()}"]
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        resource = error_details_pb2.ResourceInfo()
        if detail.Unpack(info):
            lines.append(f"  reason {info.reason}")
        elif detail.Unpack(request):
            lines += [f"  field {v.field}: {v.description}" for v in request.field_violations]
        elif detail.Unpack(retry):
            lines.append(f"  try again in {retry.retry_delay.ToTimedelta().total_seconds():g} s")
        elif detail.Unpack(resource):
            lines.append(f"  there is no {resource.resource_type} {resource.resource_name}")
    return "\n".join(lines)


def register(catalog: catalog_pb2_grpc.CatalogServiceStub) -> None:
    """A student, a teacher and a question. Doing it again finds what is there."""
    catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            name="student",
            model=f"{MODELS}/student",
            sampling=catalog_pb2.Sampling(temperature=0.7),
            max_new_tokens=80,
        ),
        timeout=SECONDS,
    )
    catalog.RegisterTeacher(
        catalog_pb2.RegisterTeacherRequest(
            name="strong", model=f"{MODELS}/teacher-strong", policies=["student"]
        ),
        timeout=SECONDS,
    )
    registered = catalog.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(
            questions=[
                catalog_pb2.QuestionSpec(
                    name="plums", fields={"question": QUESTION, "answer": "11"}
                )
            ],
            verifier="hash_answer",
        ),
        timeout=SECONDS,
    )
    for result in registered.results:  # each succeeds or fails by itself
        if result.HasField("error"):
            sys.exit(f"question {result.index}: {result.error.message}")


def grow(growth: growth_pb2_grpc.GrowthServiceStub, node: diagnosis_pb2.NodeRef) -> None:
    """Spend 400 rollouts on a node, watching. The request_id makes a second run find the first."""
    started = growth.StartGrowth(
        growth_pb2.StartGrowthRequest(
            request_id="five-minutes-python",
            targets=[growth_pb2.GrowthTarget(node=node)],
            teachers=["strong"],
            budget=growth_pb2.Budget(rollouts=400),
        ),
        timeout=SECONDS,
    )
    # The growth goes on without this stream: one that is lost can be opened again.
    watch = growth_pb2.WatchGrowthRequest(growth=started.growth.id)
    now = started.growth
    for progress in growth.WatchGrowth(watch, timeout=600):
        now = progress.growth
        print(f"growing: {now.rollouts_sampled} of {now.rollouts_planned} rollouts")
    if now.state != growth_pb2.GROWTH_STATE_SUCCEEDED:
        sys.exit(f"the growth ended as {growth_pb2.GrowthState.Name(now.state)}: {now.error}")


def main() -> None:
    """The whole job."""
    with connect() as channel:
        catalog = catalog_pb2_grpc.CatalogServiceStub(channel)
        diagnosis = diagnosis_pb2_grpc.DiagnosisServiceStub(channel)
        register(catalog)
        node = diagnosis_pb2.NodeRef(
            prefix=diagnosis_pb2.PrefixNode(policy="student", question="plums", text=PREFIX)
        )
        grow(growth_pb2_grpc.GrowthServiceStub(channel), node)
        answer = diagnosis.GetAlignment(
            diagnosis_pb2.GetAlignmentRequest(node=node, teachers=["strong"]), timeout=SECONDS
        )
        (strong,) = answer.alignments
        print(f"after {PREFIX!r}: {diagnosis_pb2.AlignmentStatus.Name(strong.status)}")
        if strong.HasField("cosine"):  # absent where there is nothing to score; the status says why
            cosine = strong.cosine
            print(f"strong: cosine {cosine.median:+.3f} [{cosine.low:+.3f}, {cosine.high:+.3f}]")

        # What a mistake looks like.
        try:
            catalog.RegisterPolicy(
                catalog_pb2.RegisterPolicyRequest(
                    model=f"{MODELS}/student", sampling=catalog_pb2.Sampling(temperature=-1)
                ),
                timeout=SECONDS,
            )
        except grpc.RpcError as error:
            print(f"refused, as it should be: {explain(error)}")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(explain(error))
