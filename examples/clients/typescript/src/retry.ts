import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { setTimeout as wait } from "node:timers/promises";
import { RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

/**
 * Repeats calls that the server could not take now (UNAVAILABLE), until `attempts` were made or the
 * call's deadline is over. Waits as long as the server says, else twice as long each time.
 *
 * Every call of the contract may be repeated: what is registered is found again, what is sampled has
 * a seed or a request_id. A stream is repeated only if it never began.
 */
export function retry(attempts = 5, firstDelayMs = 200): Interceptor {
  return (next) => async (request) => {
    for (let attempt = 1; ; attempt++) {
      try {
        return await next(request);
      } catch (error) {
        const failed = ConnectError.from(error);
        if (failed.code !== Code.Unavailable || attempt >= attempts || request.signal.aborted) {
          throw failed;
        }
        const delay = retryDelayMs(failed) ?? firstDelayMs * 2 ** (attempt - 1);
        // The deadline ends the wait, too: `signal` is aborted then.
        await wait(delay * (0.8 + 0.4 * Math.random()), undefined, { signal: request.signal });
      }
    }
  };
}

/** What the server asks to wait (google.rpc.RetryInfo), in milliseconds, if it does. */
export function retryDelayMs(error: ConnectError): number | undefined {
  const [info] = error.findDetails(RetryInfoSchema);
  const delay = info?.retryDelay;
  return delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6;
}
