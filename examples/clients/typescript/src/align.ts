// An alignment from the contract alone, on Node.js. See docs/clients.md for what comes before.

import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Client } from "@connectrpc/connect";
import { setTimeout as wait } from "node:timers/promises";
import { connect } from "./connect.js";
import { explain } from "./errors.js";
import { CatalogService } from "./gen/unmask/v1/catalog_pb.js";
import {
  AlignmentStatus,
  DiagnosisService,
  NodeRefSchema,
  type NodeRef,
} from "./gen/unmask/v1/diagnosis_pb.js";
import { GrowthService, GrowthState, type Growth } from "./gen/unmask/v1/growth_pb.js";

const models = process.env.UNMASK_MODELS ?? "examples/models"; // where the server finds them
const question = "Tom has 12 plums. First he finds 8, then he sells 9. How many plums does he have now?";
const prefix = "first, 12 + 8 ="; // what the student has written when the token comes that we ask about

const transport = connect();
const catalog = createClient(CatalogService, transport);
const diagnosis = createClient(DiagnosisService, transport);
const growths = createClient(GrowthService, transport);

/** A student, a teacher and a question. Doing it again finds what is there. */
async function register(): Promise<void> {
  await catalog.registerPolicy({
    name: "student",
    model: `${models}/student`,
    sampling: { temperature: 0.7 },
    maxNewTokens: 80,
  });
  await catalog.registerTeacher({
    name: "strong",
    model: `${models}/teacher-strong`,
    policies: ["student"],
  });
  const registered = await catalog.registerQuestions({
    questions: [{ name: "plums", fields: { question, answer: "11" } }],
    verifier: "hash_answer",
  });
  for (const { index, result } of registered.results) {
    if (result.case === "error") {
      throw new Error(`question ${index}: ${result.value.message}`); // each succeeds or fails by itself
    }
  }
}

/** A growth's progress to its end. It goes on without us: a stream that is lost is opened again. */
async function* watch(client: Client<typeof GrowthService>, growth: string): AsyncIterable<Growth> {
  for (let lost = 0; lost < 5; lost++) {
    try {
      for await (const { growth: now } of client.watchGrowth({ growth }, { timeoutMs: 60_000 })) {
        lost = 0;
        if (now) yield now;
      }
      return;
    } catch (error) {
      const { code } = ConnectError.from(error);
      if (code !== Code.Unavailable && code !== Code.DeadlineExceeded) throw error;
      await wait(1000);
    }
  }
  throw new ConnectError(`the growth ${growth} cannot be watched`, Code.Unavailable);
}

/** Spends 400 rollouts on a node. The requestId makes a second run find the first one's growth. */
async function grow(node: NodeRef): Promise<void> {
  let { growth } = await growths.startGrowth({
    requestId: "five-minutes-typescript",
    targets: [{ target: { case: "node", value: node } }],
    teachers: ["strong"],
    budget: { rollouts: 400n },
  });
  for await (growth of watch(growths, growth!.id)) {
    console.log(`growing: ${growth.rolloutsSampled} of ${growth.rolloutsPlanned} rollouts`);
  }
  if (growth?.state !== GrowthState.SUCCEEDED) {
    throw new Error(`the growth ended as ${GrowthState[growth!.state]}: ${growth!.error}`);
  }
}

async function main(): Promise<void> {
  await register();
  const node = create(NodeRefSchema, {
    node: {
      case: "prefix",
      value: { policy: "student", question: "plums", prefix: { case: "text", value: prefix } },
    },
  });
  await grow(node);

  const { alignments } = await diagnosis.getAlignment({ node, teachers: ["strong"] });
  const [strong] = alignments;
  console.log(`after ${JSON.stringify(prefix)}: ${AlignmentStatus[strong.status]}`);
  if (strong.cosine) {
    // Absent where there is nothing to score; the status says why.
    const { median, low, high } = strong.cosine;
    const [m, l, h] = [median, low, high].map((x) => (x < 0 ? "" : "+") + x.toFixed(3));
    console.log(`strong: cosine ${m} [${l}, ${h}]`);
  }

  // What a mistake looks like.
  try {
    await catalog.registerPolicy({ model: `${models}/student`, sampling: { temperature: -1 } });
  } catch (error) {
    console.log(`refused, as it should be: ${explain(error)}`);
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof ConnectError ? explain(error) : String(error));
  process.exitCode = 1;
}
