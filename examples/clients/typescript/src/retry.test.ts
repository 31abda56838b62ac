import { Code, ConnectError, createClient, createRouterTransport } from "@connectrpc/connect";
import assert from "node:assert/strict";
import { test } from "node:test";
import { RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { CatalogService } from "./gen/unmask/v1/catalog_pb.js";
import { retry } from "./retry.js";

/** A client of a server that fails `failures` times, and how often it was called. */
function failing(failures: number, error: ConnectError) {
  const calls = { count: 0 };
  const transport = createRouterTransport(
    ({ service }) =>
      service(CatalogService, {
        listPolicies() {
          calls.count++;
          if (calls.count <= failures) throw error;
          return {};
        },
      }),
    { transport: { interceptors: [retry(5, 1)] } },
  );
  return { client: createClient(CatalogService, transport), calls };
}

const soon = { seconds: 0n, nanos: 1_000_000 };
const busy = new ConnectError("busy", Code.Unavailable, undefined, [
  { desc: RetryInfoSchema, value: { retryDelay: soon } },
]);

test("a call is repeated while the server is not available", async () => {
  const { client, calls } = failing(3, busy);
  await client.listPolicies({});
  assert.equal(calls.count, 4);
});

test("it is given up after five attempts", async () => {
  const { client, calls } = failing(9, new ConnectError("gone", Code.Unavailable));
  await assert.rejects(client.listPolicies({}), /gone/);
  assert.equal(calls.count, 5);
});

test("what is wrong with the request is not repeated", async () => {
  const { client, calls } = failing(9, new ConnectError("temperature", Code.InvalidArgument));
  await assert.rejects(client.listPolicies({}), /temperature/);
  assert.equal(calls.count, 1);
});

test("the deadline ends the wait", async () => {
  const later = new ConnectError("busy", Code.Unavailable, undefined, [
    { desc: RetryInfoSchema, value: { retryDelay: { seconds: 600n, nanos: 0 } } },
  ]);
  const { client, calls } = failing(9, later);
  await assert.rejects(client.listPolicies({}, { timeoutMs: 50 }), {
    code: Code.DeadlineExceeded,
  });
  assert.equal(calls.count, 1);
});
