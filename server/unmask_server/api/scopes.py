"""What each call needs: the one table."""

from __future__ import annotations

from collections.abc import Mapping

from unmask_server.access.principals import Scope

_CALLS: Mapping[Scope, Mapping[str, tuple[str, ...]]] = {
    Scope.READ: {
        "CatalogService": (
            "GetPolicy",
            "ListPolicies",
            "GetTeacher",
            "ListTeachers",
            "PreviewPrompt",
            "GetQuestion",
            "ListQuestions",
            "ListVerifiers",
        ),
        "TrajectoryService": ("GetTrajectory", "ListTrajectories"),
        "DiagnosisService": (
            "GetNode",
            "GetIdealGradient",
            "GetAlignment",
            "StreamTrajectoryAlignments",
            "SummarizeAlignments",
            "CompareGroups",
            "CompareObjectives",
        ),
        "GrowthService": ("PredictGrowth", "GetGrowth", "ListGrowths", "WatchGrowth"),
        "CacheService": ("GetStatistics", "ListRollouts", "ExportCache"),
    },
    Scope.GROW: {
        # Which models may be registered is for `model_roots` and `endpoint_hosts` to say.
        "CatalogService": (
            "RegisterPolicy",
            "RegisterTeacher",
            "PutTeacherDistributions",
            "RegisterQuestions",
            "RegisterVerifier",
        ),
        "TrajectoryService": ("SampleTrajectories", "SubmitTrajectory"),
        "GrowthService": (
            "StartGrowth",
            "CancelGrowth",
            "PauseGrowth",
            "ResumeGrowth",
            "ExtendGrowth",
        ),
        "CacheService": ("RegradeRollouts", "PutOutcomes", "ImportGenerations"),
    },
    # Rollouts of another server are believed as they come.
    Scope.ADMIN: {"CacheService": ("ImportCache",)},
}

SCOPES: Mapping[str, Scope] = {
    f"/unmask.v1.{service}/{name}": scope
    for scope, services in _CALLS.items()
    for service, names in services.items()
    for name in names
}
"""What each call of the contract needs, by its path."""

OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.", "/grpc.reflection.v1.")
"""What needs no credentials: what load balancers ask, and the contract, which is public."""


def needed(method: str) -> Scope | None:
    """What a call needs, by its path; None: nothing. What nobody thought of needs the most."""
    scope = SCOPES.get(method)
    if scope is not None:
        return scope
    return None if method.startswith(OPEN) else Scope.ADMIN
