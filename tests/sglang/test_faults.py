"""What SGLang servers do to those who rely on them costs a retry, loses nothing, counts once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import aiohttp
import numpy as np
import pytest
from unmask_server.engines.base import (
    RAW,
    BadRequestError,
    EngineError,
    FinishReason,
    ModelChangedError,
    Sample,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from unmask_server.engines.sglang import MismatchError, Serving, SglangEngine, inspect
from unmask_server.engines.sglang.client import GoneError, SglangClient

from tests.engines.helpers import collect
from tests.sglang.stand_in import EOS, TOKENS, VOCABULARY, StandIn

STOP = frozenset({EOS})
SERVING = Serving(
    model_path="/models/stand-in",
    served_name="stand-in",
    weight_version="default",
    version="0.5.20",
    max_input=4000,
    max_running=64,
    padding_mass=0.0,
    tempers_output=True,
    noise=0.0,
)


def rollouts(n: int, length: int = 8) -> list[SampleRequest]:
    return [SampleRequest((1, 2, 3), (1 + i % 7,), length, i) for i in range(n)]


async def sampled(engine: SglangEngine, n: int, length: int = 8) -> list[Sample]:
    return await collect(engine, rollouts(n, length), RAW, STOP)


async def test_a_servers_password_is_not_shown() -> None:
    async with aiohttp.ClientSession() as session:
        client = SglangClient("http://ann:secret@127.0.0.1:1/v1/", session, timeout=1.0)
        assert client.url == "http://127.0.0.1:1/v1"
        with pytest.raises(GoneError) as caught:
            await client.info()
        assert "secret" not in str(caught.value)


def assert_whole(samples: list[Sample]) -> None:
    for sample in samples:
        assert sample.tokens == (3,) * (TOKENS - 1) + (EOS,)
        assert sample.finish is FinishReason.STOP


Open = Callable[..., SglangEngine]


@pytest.fixture
async def servers() -> AsyncIterator[list[StandIn]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(StandIn().running()) for _ in range(2)]


@pytest.fixture
def server(servers: list[StandIn]) -> StandIn:
    return servers[0]


@pytest.fixture
async def open_engine(servers: list[StandIn]) -> AsyncIterator[Open]:
    opened: list[SglangEngine] = []

    def make(count: int = 1, **options: Any) -> SglangEngine:
        options = {"max_context": 4000, "patience": 20.0} | options
        opened.append(
            SglangEngine(
                [server.url for server in servers[:count]],
                SERVING,
                columns=VOCABULARY,
                usable=VOCABULARY,
                **options,
            )
        )
        return opened[-1]

    yield make
    for engine in opened:
        await engine.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (what changes is in the other coroutines)
            await asyncio.sleep(0.001)


async def test_every_parameter_is_sent_with_every_request(
    open_engine: Open, server: StandIn
) -> None:
    engine = open_engine()
    await collect(engine, rollouts(3), Sampling(0.7, 0.9), STOP)
    await engine.score(ScoreRequest((1, 2), (3, 4), (0, 1, 2), 4, (Sampling(0.7),)))
    assert len(server.sent) > 3
    for payload in server.sent:
        params = payload["sampling_params"]
        for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty",
                     "frequency_penalty", "presence_penalty", "max_new_tokens",
                     "min_new_tokens", "stop_token_ids", "stop", "ignore_eos", "n"):  # fmt: skip
            assert params[name] is not None
        assert params["n"] == 1
        # Would kill the scheduler beside a request that has none.
        assert "token_ids_logprob" not in payload
    warm, first = server.sent[0], server.sent[1]
    assert warm["sampling_params"]["max_new_tokens"] in (0, 9)
    assert (first["sampling_params"]["temperature"], first["sampling_params"]["top_p"]) == (
        0.7,
        0.9,
    )
    assert len(set(server.rids)) == len(server.rids)


async def test_a_dropped_connection_costs_a_retry(
    open_engine: Open, servers: list[StandIn]
) -> None:
    for server in servers:
        server.drops = 2
    engine = open_engine(2)
    assert_whole(await sampled(engine, 40))
    assert engine.replicas.retries >= 1
    everything = [rid for server in servers for rid in server.rids]
    assert len(set(everything)) == len(everything)


async def test_a_server_that_is_down_is_left_out_and_comes_back(
    open_engine: Open, servers: list[StandIn]
) -> None:
    engine = open_engine(2)
    assert_whole(await sampled(engine, 20))
    # Requests that begin alike go to one server, which one is the address's chance.
    other, down = sorted(servers, key=lambda server: len(server.sent))
    down.is_starting = True
    assert_whole(await sampled(engine, 20))
    assert engine.replicas.up == 1
    before = len(other.sent)
    asked = len(down.sent)
    assert_whole(await sampled(engine, 20))
    # Left out: nothing more is sent there.
    assert len(down.sent) == asked
    assert len(other.sent) > before
    down.is_starting = False
    await until(lambda: engine.replicas.up == 2)
    assert_whole(await sampled(engine, 20))
    assert len(down.sent) > asked


async def test_work_waits_for_a_server_that_starts(open_engine: Open, server: StandIn) -> None:
    server.is_starting = True
    engine = open_engine()
    work = asyncio.create_task(sampled(engine, 5))
    await until(lambda: engine.replicas.up == 0)
    assert not work.done()
    server.is_starting = False
    assert_whole(await work)


async def test_without_a_server_within_the_patience_work_fails(
    open_engine: Open, server: StandIn
) -> None:
    server.is_starting = True
    engine = open_engine(patience=0.05)
    with pytest.raises(EngineError, match="no SGLang server of this model answers"):
        await sampled(engine, 5)
    with pytest.raises(EngineError, match="answers"):
        await engine.score(ScoreRequest((1, 2), (3,), (0, 1), 4))


async def test_a_request_that_kills_every_server_is_given_up(
    open_engine: Open, servers: list[StandIn]
) -> None:
    for server in servers:
        server.drops = 10**6
    with pytest.raises(EngineError, match="given up after"):
        await sampled(open_engine(2), 1)


async def test_a_slow_health_answer_does_not_disturb_work(
    open_engine: Open, server: StandIn
) -> None:
    server.is_deaf_to_health = True
    engine = open_engine()
    assert_whole(await sampled(engine, 30))
    assert engine.replicas.up == 1


async def test_an_answer_after_the_time_out_is_not_counted(
    open_engine: Open, servers: list[StandIn]
) -> None:
    first, second = servers
    first.hold = asyncio.Event()
    second.hold = asyncio.Event()
    engine = open_engine(2, timeout=0.3)
    work = asyncio.create_task(sampled(engine, 1))
    await until(lambda: bool(first.aborted or second.aborted))
    first.hold.set()
    second.hold.set()
    first.hold = second.hold = None
    assert_whole(await work)
    tried = first.rids + second.rids
    assert len(tried) == len(set(tried)) >= 2
    assert set(first.aborted + second.aborted) < set(tried)


async def test_a_router_that_knows_no_abort_does_no_harm(
    open_engine: Open, servers: list[StandIn]
) -> None:
    for server in servers:
        server.knows_abort = False
        server.hold = asyncio.Event()
    engine = open_engine(2, timeout=0.3)
    work = asyncio.create_task(sampled(engine, 1))
    await until(lambda: engine.replicas.retries > 0)
    for server in servers:
        assert server.hold is not None
        server.hold.set()
        server.hold = None
    assert_whole(await work)


async def test_whoever_gives_up_has_its_requests_stopped(
    open_engine: Open, server: StandIn
) -> None:
    server.hold = asyncio.Event()
    engine = open_engine()
    work = asyncio.create_task(sampled(engine, 10))
    await until(lambda: server.at_once == 10)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await until(lambda: set(server.aborted) == set(server.rids))


async def test_closing_the_iterator_stops_what_is_running(
    open_engine: Open, server: StandIn
) -> None:
    engine = open_engine()
    async with aclosing(engine.sample(rollouts(30), RAW, STOP)) as samples:
        async for _ in samples:
            server.hold = asyncio.Event()
            break
    await until(lambda: server.at_once == 0 or bool(server.aborted))


async def test_aborted_rollouts_go_on_from_where_they_were(
    open_engine: Open, server: StandIn
) -> None:
    server.aborts = 3
    engine = open_engine()
    samples = await sampled(engine, 8)
    assert len(samples) == 8
    # To begin anew would favour short generations: three have one token more than the others.
    assert sorted(len(sample.tokens) for sample in samples) == [TOKENS] * 5 + [TOKENS + 1] * 3
    assert all(sample.finish is FinishReason.STOP for sample in samples)
    assert engine.rollouts.stats.repeated == 3


async def test_nothing_is_kept_that_other_weights_may_have_said(
    open_engine: Open, server: StandIn
) -> None:
    engine = open_engine()
    server.stamp = "v2"
    with pytest.raises(ModelChangedError, match="'v2'"):
        await sampled(engine, 4)
    server.stamp = "default"
    # Only the server's own word tells: the answer has the old stamp.
    server.weight_version = "v2"
    with pytest.raises(ModelChangedError, match="Register the new version"):
        await sampled(engine, 4)
    with pytest.raises(ModelChangedError):
        await engine.score(ScoreRequest((1, 2), (3,), (0, 1), 4))


async def test_no_more_is_in_flight_than_allowed(open_engine: Open, server: StandIn) -> None:
    server.hold = asyncio.Event()
    engine = open_engine(max_in_flight=16)
    work = asyncio.create_task(sampled(engine, 100))
    await until(lambda: server.at_once == 16)
    server.hold.set()
    assert_whole(await work)
    assert server.most_at_once == 16


async def test_nodes_along_one_path_are_scored_in_one_pass(
    open_engine: Open, server: StandIn
) -> None:
    engine = open_engine()
    path = tuple(1 + i % 7 for i in range(2000))
    positions = tuple(range(1000, 2000, 20))
    scores = await engine.score(ScoreRequest((1, 2), path, positions, 8))
    assert len(scores) == 50
    (payload,) = server.sent
    # From the first wanted position on, and no further than the last.
    assert payload["logprob_start_len"] == 2 + 1000 - 1
    assert len(payload["input_ids"][0]) == 2 + positions[-1] + 1


@pytest.mark.parametrize("bad", [-1, VOCABULARY, 2**31, True])
async def test_nothing_is_sent_with_an_id_out_of_range(
    open_engine: Open, server: StandIn, bad: int
) -> None:
    engine = open_engine()
    with pytest.raises(BadRequestError):
        await collect(engine, [SampleRequest((1, bad), (), 4, 0)], RAW, STOP)
    with pytest.raises(BadRequestError):
        await engine.score(ScoreRequest((1, 2), (bad,), (0,), 4))
    assert server.sent == []


async def test_noise_is_what_two_scorings_differ_by(servers: list[StandIn]) -> None:
    urls = [server.url for server in servers]
    assert (await inspect(urls, columns=VOCABULARY, usable=VOCABULARY)).noise < 1e-9
    servers[1].warm_shift = 0.3
    found = await inspect(urls, columns=VOCABULARY, usable=VOCABULARY)
    assert found.noise == pytest.approx(0.3, rel=1e-6)


async def test_servers_that_are_not_one_model_are_refused(servers: list[StandIn]) -> None:
    urls = [server.url for server in servers]
    with pytest.raises(MismatchError, match="8 columns, but the registered one has 9"):
        await inspect(urls, columns=9, usable=9)
    servers[1].weight_version = "v2"
    with pytest.raises(MismatchError, match="weight_version 'v2'"):
        await inspect(urls, columns=VOCABULARY, usable=VOCABULARY)
    servers[1].weight_version, servers[1].served_name = "default", "other"
    with pytest.raises(MismatchError, match="served_name 'other'"):
        await inspect(urls, columns=VOCABULARY, usable=VOCABULARY)
    servers[1].served_name, servers[1].version = "stand-in", "0.5.17"
    with pytest.raises(MismatchError, match=r"0\.5\.17"):
        await inspect(urls, columns=VOCABULARY, usable=VOCABULARY)
    # Nothing was sent that could have killed one of another vocabulary.
    assert all("token_ids_logprob" in payload for s in servers for payload in s.sent)


async def test_padding_columns_with_mass_are_found_and_forbidden(
    servers: list[StandIn],
) -> None:
    server = servers[0]
    serving = await inspect([server.url], columns=VOCABULARY, usable=VOCABULARY - 2)
    assert 0.01 < serving.padding_mass < 1
    engine = SglangEngine(
        [server.url], serving, columns=VOCABULARY, usable=VOCABULARY - 2, max_context=4000
    )
    server.sent.clear()
    await sampled(engine, 1)
    assert server.sent[-1]["sampling_params"]["logit_bias"].keys() == {"6", "7"}
    (score,) = await engine.score(ScoreRequest((1, 2), (), (0,), 100))
    assert sorted(score.ids.tolist()) == list(range(VOCABULARY - 2))
    assert float(np.exp(score.logprobs).sum()) == pytest.approx(1.0, abs=1e-6)
    await engine.close()
