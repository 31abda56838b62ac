// The server, through a proxy that speaks gRPC-Web on the page's own origin.

import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";
import { CatalogService } from "./gen/unmask/v1/catalog_pb.js";
import { DiagnosisService } from "./gen/unmask/v1/diagnosis_pb.js";
import { TrajectoryService } from "./gen/unmask/v1/trajectory_pb.js";

const TOKEN = "unmask-token";

/** Keeps a token for this tab, until it is closed. */
export function setToken(token: string): void {
  sessionStorage.setItem(TOKEN, token);
}

const authorize: Interceptor = (next) => (request) => {
  const token = sessionStorage.getItem(TOKEN);
  if (token) request.header.set("authorization", `Bearer ${token}`);
  return next(request);
};

const transport = createGrpcWebTransport({
  baseUrl: location.origin,
  interceptors: [authorize],
  defaultTimeoutMs: 30_000,
});

export const catalog = createClient(CatalogService, transport);
export const diagnosis = createClient(DiagnosisService, transport);
export const trajectories = createClient(TrajectoryService, transport);

/** The deadline of calls that may have to score a generation first. */
export const scoring = { timeoutMs: 120_000 };

/** Every item of a list, page by page; pages are small enough for any client. */
export async function* all<T>(
  page: (pageToken: string) => Promise<{ items: T[]; nextPageToken: string }>,
): AsyncIterable<T> {
  let pageToken = "";
  do {
    const answer = await page(pageToken);
    yield* answer.items;
    pageToken = answer.nextPageToken;
  } while (pageToken);
}

/** Whether the server wants a token, or another one. */
export function wantsToken(error: unknown): boolean {
  return ConnectError.from(error).code === Code.Unauthenticated;
}

/** What the server says of an error: the message, the fields, when to try again. */
export function explain(thrown: unknown): string {
  const error = ConnectError.from(thrown);
  const lines = [error.rawMessage];
  for (const request of error.findDetails(BadRequestSchema)) {
    lines.push(...request.fieldViolations.map((v) => `${v.field}: ${v.description}`));
  }
  for (const { resourceType, resourceName } of error.findDetails(ResourceInfoSchema)) {
    lines.push(`there is no ${resourceType} ${resourceName}`);
  }
  for (const { retryDelay } of error.findDetails(RetryInfoSchema)) {
    if (retryDelay) lines.push(`try again in ${Number(retryDelay.seconds) + retryDelay.nanos / 1e9} s`);
  }
  const [info] = error.findDetails(ErrorInfoSchema);
  const code = info?.reason || Code[error.code];
  // The message often names what a detail names again.
  const said = lines.filter((line, i) => lines.findIndex((other) => other.includes(line)) === i);
  return `${code}: ${said.join("; ")}`;
}
