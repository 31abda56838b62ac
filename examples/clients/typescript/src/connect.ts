import type { Interceptor, Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { readFileSync } from "node:fs";
import { retry } from "./retry.js";

/**
 * How to reach the server at UNMASK_ADDRESS: with TLS if there is a certificate to trust
 * (UNMASK_TLS_CA, a file), with a token if there is one (UNMASK_TOKEN).
 */
export function connect(): Transport {
  const { UNMASK_ADDRESS: address = "localhost:50051", UNMASK_TOKEN: token, UNMASK_TLS_CA: ca } = process.env;
  if (token && !ca) {
    throw new Error("UNMASK_TOKEN would be sent in the clear: give UNMASK_TLS_CA, too");
  }
  const authorize: Interceptor = (next) => (request) => {
    if (token) {
      request.header.set("authorization", `Bearer ${token}`);
    }
    return next(request);
  };
  return createGrpcTransport({
    baseUrl: `${ca ? "https" : "http"}://${address}`,
    nodeOptions: ca ? { ca: readFileSync(ca) } : {},
    interceptors: [retry(), authorize],
    defaultTimeoutMs: 30_000,
    readMaxBytes: 4 * 2 ** 20, // as gRPC elsewhere has it; the server's pages fit
    pingIntervalMs: 330_000, // finds dead connections; servers allow no more than one in five minutes
    acceptCompression: [],
  });
}
