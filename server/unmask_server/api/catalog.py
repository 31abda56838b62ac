"""CatalogService."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import grpc
from unmask.v1 import catalog_pb2 as pb
from unmask.v1 import catalog_pb2_grpc

from unmask_server.api import catalog_messages as messages
from unmask_server.api.given_distributions import given_distributions
from unmask_server.api.given_questions import given_questions
from unmask_server.api.paging import Item, Made, cut_page, decode_page, page_size
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import (
    Control,
    Policy,
    Prompting,
    PromptStyle,
    Question,
    Teacher,
)
from unmask_server.engines.base import Sampling
from unmask_server.nodes.demonstrations import Demonstrations, shows_own
from unmask_server.nodes.resolve import Resolver
from unmask_server.nodes.stored import StoredTeachers
from unmask_server.reasons import Reason

Context = grpc.aio.ServicerContext[Any, Any]

Launched = Callable[[str], Coroutine[Any, Any, tuple[str, ...]]]
"""Where this server itself has SGLang run a model directory; empty if it does not."""
DEFAULT_MAX_NEW_TOKENS = 256


_JOINT = {
    pb.CUT_ORDER_UNSPECIFIED: None,
    pb.CUT_ORDER_TOP_K_FIRST: False,
    pb.CUT_ORDER_JOINT: True,
}
_STYLES = {
    pb.PROMPT_STYLE_UNSPECIFIED: None,
    pb.PROMPT_STYLE_CHAT: PromptStyle.CHAT,
    pb.PROMPT_STYLE_RAW: PromptStyle.RAW,
}
_CONTROLS: Mapping[int, Control] = {pb.Control.Value(f"CONTROL_{c.name}"): c for c in Control}


class CatalogService(catalog_pb2_grpc.CatalogServiceServicer):
    """See proto/unmask/v1/catalog.proto."""

    def __init__(
        self,
        catalog: Catalog,
        resolver: Resolver,
        demonstrations: Demonstrations,
        stored: StoredTeachers,
        launched: Launched,
        *,
        max_noise: float,
    ) -> None:
        self._catalog = catalog
        self._resolver = resolver
        self._demonstrations = demonstrations
        self._stored = stored
        self._launched = launched
        self._max_noise = max_noise

    async def RegisterPolicy(
        self, request: pb.RegisterPolicyRequest, context: Context
    ) -> pb.RegisterPolicyResponse:
        """Register a student."""
        endpoints = request.endpoints or await self._launched(request.model)
        return await asyncio.to_thread(self._register_policy, request, endpoints)

    def _register_policy(
        self, request: pb.RegisterPolicyRequest, endpoints: Sequence[str]
    ) -> pb.RegisterPolicyResponse:
        sampling = request.sampling
        policy, warnings = self._catalog.register_policy(
            path=request.model,
            endpoints=endpoints,
            name=request.name or None,
            joint=_JOINT[sampling.cut_order],
            sampling=Sampling(
                temperature=sampling.temperature if sampling.HasField("temperature") else 1.0,
                top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
                top_k=sampling.top_k,
            ),
            max_new_tokens=request.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            stop_ids=tuple(request.stop_ids) or None,
            stop_texts=tuple(request.stop_texts),
            prompting=_prompting(request),
        )
        return pb.RegisterPolicyResponse(policy=messages.policy(policy), warnings=warnings)

    async def GetPolicy(
        self, request: pb.GetPolicyRequest, context: Context
    ) -> pb.GetPolicyResponse:
        """One policy."""
        found = await asyncio.to_thread(self._resolver.policy, request.policy, "policy")
        return pb.GetPolicyResponse(policy=messages.policy(found))

    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: Context
    ) -> pb.ListPoliciesResponse:
        """A page."""
        found, token = await asyncio.to_thread(
            _page, self._catalog.list_policies, request, messages.policy
        )
        return pb.ListPoliciesResponse(policies=found, next_page_token=token)

    async def RegisterTeacher(
        self, request: pb.RegisterTeacherRequest, context: Context
    ) -> pb.RegisterTeacherResponse:
        """Register a teacher."""
        if request.stored:
            return await asyncio.to_thread(self._register_stored, request)
        if request.control:
            return await asyncio.to_thread(self._register_control, request)
        endpoints = request.endpoints or await self._launched(request.model)
        return await asyncio.to_thread(self._register_teacher, request, endpoints)

    def _register_stored(self, request: pb.RegisterTeacherRequest) -> pb.RegisterTeacherResponse:
        teacher = self._catalog.register_stored(
            request.stored, students=self._students(request), name=request.name or None
        )
        return pb.RegisterTeacherResponse(teacher=messages.teacher(teacher))

    def _students(self, request: pb.RegisterTeacherRequest) -> list[Policy]:
        return [
            self._resolver.policy(name, f"policies[{i}]") for i, name in enumerate(request.policies)
        ]

    def _register_control(self, request: pb.RegisterTeacherRequest) -> pb.RegisterTeacherResponse:
        control = _CONTROLS[request.control]
        base, student = None, None
        if control.needs_base:
            base = self._catalog.get_teacher(request.base_teacher)
        else:
            student = self._resolver.policy(request.base_policy, "base_policy")
        teacher = self._catalog.register_control(
            control, base=base, student=student, name=request.name or None
        )
        return pb.RegisterTeacherResponse(teacher=messages.teacher(teacher))

    def _register_teacher(
        self, request: pb.RegisterTeacherRequest, endpoints: Sequence[str]
    ) -> pb.RegisterTeacherResponse:
        own = (
            self._resolver.policy(request.base_policy, "base_policy")
            if request.base_policy
            else None
        )
        students = self._students(request)
        prompting = _prompting(request)
        if prompting is None and own is not None:
            prompting = own.prompting
        teacher, warnings = self._catalog.register_teacher(
            path=request.model,
            endpoints=endpoints,
            of=own,
            max_noise=math.inf if request.allow_noisy else self._max_noise,
            name=request.name or None,
            context=request.context.name or "none",
            template=request.context.template or None,
            prompting=prompting,
            students=students,
        )
        return pb.RegisterTeacherResponse(teacher=messages.teacher(teacher), warnings=warnings)

    async def GetTeacher(
        self, request: pb.GetTeacherRequest, context: Context
    ) -> pb.GetTeacherResponse:
        """One teacher."""
        found = await asyncio.to_thread(self._catalog.get_teacher, request.teacher)
        return pb.GetTeacherResponse(teacher=messages.teacher(found))

    async def ListTeachers(
        self, request: pb.ListTeachersRequest, context: Context
    ) -> pb.ListTeachersResponse:
        """A page."""
        found, token = await asyncio.to_thread(
            _page, self._catalog.list_teachers, request, messages.teacher
        )
        return pb.ListTeachersResponse(teachers=found, next_page_token=token)

    async def PutTeacherDistributions(
        self, request: pb.PutTeacherDistributionsRequest, context: Context
    ) -> pb.PutTeacherDistributionsResponse:
        """All of them, or none."""
        return await asyncio.to_thread(self._put_distributions, request)

    def _put_distributions(
        self, request: pb.PutTeacherDistributionsRequest
    ) -> pb.PutTeacherDistributionsResponse:
        teacher = self._catalog.get_teacher(request.teacher)
        if teacher.stored is None:
            raise FailedPrecondition(
                Reason.TEACHER_NOT_STORED,
                f"{teacher.id} is no stored teacher; register one (RegisterTeacher.stored)",
                field="teacher",
                teacher=teacher.id,
            )
        given = given_distributions(request, teacher, self._catalog)
        added, known = self._stored.put(teacher, given)
        return pb.PutTeacherDistributionsResponse(added=added, known=known)

    async def PreviewPrompt(
        self, request: pb.PreviewPromptRequest, context: Context
    ) -> pb.PreviewPromptResponse:
        """A rendered prompt."""
        return await asyncio.to_thread(self._preview, request)

    def _preview(self, request: pb.PreviewPromptRequest) -> pb.PreviewPromptResponse:
        question = self._resolver.question(request.question, "question")
        response = pb.PreviewPromptResponse()
        policy = self._resolver.policy(request.policy, "policy") if request.policy else None
        if policy is not None:
            shown = self._catalog.policy_prompt(policy, question)
            response.policy.CopyFrom(messages.rendered(shown))
        if request.teacher:
            teacher = self._catalog.get_teacher(request.teacher)
            if teacher.scored is None:
                raise InvalidArgument(
                    "teacher", f"{teacher.id} is made from the student alone: it is shown nothing"
                )
            if teacher.is_stored:
                raise InvalidArgument(
                    "teacher", f"of {teacher.id} only answers are stored, not what it was shown"
                )
            shown = self._catalog.teacher_prompt(
                teacher.scored, question, own=self._own(teacher, policy, question)
            )
            response.teacher.CopyFrom(messages.rendered(shown))
        return response

    def _own(self, teacher: Teacher, policy: Policy | None, question: Question) -> str | None:
        if not shows_own(teacher):
            return None
        if policy is None:
            raise InvalidArgument(
                "policy", f"teacher {teacher.id} is shown a policy's own rollout: name the policy"
            )
        return self._demonstrations.text(policy, question, question.verifier)

    async def RegisterQuestions(
        self, request: pb.RegisterQuestionsRequest, context: Context
    ) -> pb.RegisterQuestionsResponse:
        """Each by itself."""
        return await asyncio.to_thread(self._register_questions, request)

    def _register_questions(
        self, request: pb.RegisterQuestionsRequest
    ) -> pb.RegisterQuestionsResponse:
        verifier = self._catalog.get_verifier(request.verifier) if request.verifier else None
        parsed = given_questions(request, self._catalog.gym)
        response = pb.RegisterQuestionsResponse()
        for (index, _), result in zip(
            parsed,
            self._catalog.register_questions([spec for _, spec in parsed], verifier),
            strict=True,
        ):
            item = response.results.add(index=index)
            if isinstance(result, Question):
                item.question.CopyFrom(messages.question(result))
            else:
                item.error.CopyFrom(messages.question_error(result))
        return response

    async def GetQuestion(
        self, request: pb.GetQuestionRequest, context: Context
    ) -> pb.GetQuestionResponse:
        """One question."""
        found = await asyncio.to_thread(self._resolver.question, request.question, "question")
        return pb.GetQuestionResponse(question=messages.question(found))

    async def ListQuestions(
        self, request: pb.ListQuestionsRequest, context: Context
    ) -> pb.ListQuestionsResponse:
        """A page."""
        found, token = await asyncio.to_thread(
            _page, self._catalog.list_questions, request, messages.question
        )
        return pb.ListQuestionsResponse(questions=found, next_page_token=token)

    async def RegisterVerifier(
        self, request: pb.RegisterVerifierRequest, context: Context
    ) -> pb.RegisterVerifierResponse:
        """Register a verifier."""
        kind = messages.KINDS[request.kind]
        found = await asyncio.to_thread(
            self._catalog.register_verifier, kind, dict(request.options), request.name or None
        )
        return pb.RegisterVerifierResponse(verifier=messages.verifier(found))

    async def ListVerifiers(
        self, request: pb.ListVerifiersRequest, context: Context
    ) -> pb.ListVerifiersResponse:
        """A page."""
        found, token = await asyncio.to_thread(
            _page, self._catalog.list_verifiers, request, messages.verifier
        )
        return pb.ListVerifiersResponse(verifiers=found, next_page_token=token)


def _prompting(request: pb.RegisterPolicyRequest | pb.RegisterTeacherRequest) -> Prompting | None:
    if not request.HasField("prompting"):
        return None
    style = _STYLES[request.prompting.style]
    template = request.prompting.template or None
    if style is None:
        style = PromptStyle.RAW if template else None
    return None if style is None else Prompting(style, template)


def _page(
    listing: Callable[[int, tuple[float, str] | None], Sequence[Item]],
    request: Any,
    message: Callable[[Item], Made],
) -> tuple[list[Made], str]:
    size = page_size(request.page_size)
    found = listing(size + 1, decode_page(request.page_token))

    def key(item: Any) -> tuple[float, str]:
        return item.created_at, item.id

    return cut_page(found, size, message, key)
