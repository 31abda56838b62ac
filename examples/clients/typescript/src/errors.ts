import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, ResourceInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { retryDelayMs } from "./retry.js";

/** What the server says of an error: its code, its reason, the fields, when to try again. */
export function explain(thrown: unknown): string {
  const error = ConnectError.from(thrown);
  const code = Code[error.code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
  const lines = [`${code}: ${error.rawMessage}`];
  for (const info of error.findDetails(ErrorInfoSchema)) {
    lines.push(`  reason ${info.reason}`);
  }
  for (const request of error.findDetails(BadRequestSchema)) {
    lines.push(...request.fieldViolations.map((v) => `  field ${v.field}: ${v.description}`));
  }
  for (const resource of error.findDetails(ResourceInfoSchema)) {
    lines.push(`  there is no ${resource.resourceType} ${resource.resourceName}`);
  }
  const delay = retryDelayMs(error);
  if (delay !== undefined) {
    lines.push(`  try again in ${delay / 1000} s`);
  }
  return lines.join("\n");
}
