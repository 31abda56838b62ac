// A generation, coloured for each teacher, and what is known of one of its tokens.

import { diagnosis, explain, scoring } from "./api.js";
import { byId, element } from "./dom.js";
import type { Alignment, Candidate, Interval, Node } from "./gen/unmask/v1/diagnosis_pb.js";
import type { Loss } from "./gen/unmask/v1/diagnosis_pb.js";
import type { Trajectory } from "./gen/unmask/v1/trajectory_pb.js";
import { MEANINGS, isScored, percent, shade, signed, verdict, visible, type Verdict } from "./scores.js";

const CANDIDATES = 8;

/** What a teacher does at one token. */
interface Score {
  node: Node;
  alignment: Alignment;
}

/** A block for one teacher: fills as the answers stream in. */
class Block {
  readonly root: HTMLElement;
  private readonly tokens: HTMLElement[];
  private readonly counts = element("p", { class: "counts" });
  private readonly scores = new Map<number, Score>();

  constructor(
    readonly teacher: string,
    label: string,
    trajectory: Trajectory,
    open: (position: number) => void,
  ) {
    this.tokens = trajectory.tokens.map((token, position) =>
      element(
        "button",
        { type: "button", class: "token pending", on: { click: () => open(position) } },
        visible(token.text),
      ),
    );
    this.root = element(
      "section",
      { class: "block", "data-teacher": teacher },
      element("h3", {}, label),
      this.counts,
      element("div", { class: "tokens" }, ...this.tokens),
    );
    this.counts.textContent = "asking …";
  }

  add(node: Node, alignment: Alignment): void {
    this.scores.set(node.position, { node, alignment });
    const of = verdict(alignment);
    const shown = this.tokens[node.position];
    shown.className = `token ${of}`;
    shown.title = MEANINGS[of];
    if (alignment.cosine && isScored(of)) {
      shown.style.backgroundColor = shade(alignment.cosine.median, of !== "undecided");
      shown.title = `cosine ${interval(alignment.cosine)}: ${MEANINGS[of]}`;
    }
    this.count();
  }

  fail(message: string): void {
    this.counts.textContent = message;
    this.counts.classList.add("failed");
  }

  at(position: number): Score | undefined {
    return this.scores.get(position);
  }

  select(position: number): void {
    this.tokens.forEach((token, i) => token.classList.toggle("selected", i === position));
  }

  private count(): void {
    const counts = new Map<Verdict, number>();
    for (const { alignment } of this.scores.values()) {
      const of = verdict(alignment);
      counts.set(of, (counts.get(of) ?? 0) + 1);
    }
    const of = (name: Verdict) => counts.get(name) ?? 0;
    const scored = `${of("helps")} helped, ${of("hurts")} hurt, ${of("undecided")} undecided`;
    const others = (["flat", "no-signal", "unbounded", "no-data", "not-covered"] as const)
      .filter(of)
      .map((name) => `${of(name)} ${name.replace("-", " ")}`);
    this.counts.textContent = others.length ? `${scored}; no score: ${others.join(", ")}` : scored;
  }
}

/** Shows a generation under some teachers. Another call ends what the one before still asks. */
export class View {
  private asking = new AbortController();
  private blocks: Block[] = [];
  private trajectory?: Trajectory;

  async show(trajectory: Trajectory, teachers: Map<string, string>, loss: Loss): Promise<void> {
    this.asking.abort();
    const asking = (this.asking = new AbortController());
    this.trajectory = trajectory;
    byId("token").hidden = true;
    this.blocks = [...teachers].map(
      ([id, label]) => new Block(id, label, trajectory, (position) => void this.open(position)),
    );
    byId("blocks").replaceChildren(...this.blocks.map((block) => block.root));
    // One stream a teacher: what is wrong with one says nothing about the others.
    await Promise.all(this.blocks.map((block) => this.fill(block, loss, asking.signal)));
  }

  private async fill(block: Block, loss: Loss, signal: AbortSignal): Promise<void> {
    try {
      const answers = diagnosis.streamTrajectoryAlignments(
        { trajectory: this.trajectory!.id, teachers: [block.teacher], algorithms: [{ loss }] },
        { ...scoring, signal },
      );
      for await (const { node, alignments } of answers) {
        if (signal.aborted) return;
        if (node) block.add(node, alignments[0]);
      }
    } catch (error) {
      if (!signal.aborted) block.fail(explain(error));
    }
  }

  /** What is known at a token: each teacher's push, and where the candidates lead. */
  private async open(position: number): Promise<void> {
    const { id, tokens } = this.trajectory!;
    this.blocks.forEach((block) => block.select(position));
    byId("token-title").textContent = `Token ${position}: “${visible(tokens[position].text)}”`;
    byId("pushes").replaceChildren(
      ...this.blocks.map((block) => push(block.root.querySelector("h3")!.textContent!, block.at(position))),
    );
    const rows = byId("candidates");
    rows.replaceChildren();
    byId("token").hidden = false;
    try {
      const answer = await diagnosis.getNode(
        {
          node: { node: { case: "trajectory", value: { trajectory: id, position } } },
          teachers: this.blocks.map((block) => block.teacher),
        },
        { ...scoring, signal: this.asking.signal },
      );
      const likeliest = answer.candidates.slice(0, CANDIDATES);
      rows.replaceChildren(...likeliest.map((one) => candidate(one, tokens[position].id)));
      const { success, rollouts } = answer.node!;
      byId("token-node").textContent = success
        ? `From here the student succeeds in ${percent(success.median)} (${range(success)}); ${rollouts} rollouts.`
        : "";
    } catch (error) {
      byId("token-node").textContent = explain(error);
    }
  }
}

function push(label: string, score?: Score): HTMLElement {
  if (!score) return element("li", {}, `${label}: no answer yet`);
  const { alignment } = score;
  const of = verdict(alignment);
  const chip = element("span", { class: `chip ${of}` }, alignment.cosine ? signed(alignment.cosine.median) : "–");
  if (alignment.cosine) chip.style.backgroundColor = shade(alignment.cosine.median, of !== "undecided");
  const words = alignment.cosine
    ? `cosine ${interval(alignment.cosine)}, above 0 with ${percent(alignment.probabilityPositive ?? 0)}`
    : MEANINGS[of];
  return element("li", {}, chip, element("strong", {}, label), element("span", { class: "dim" }, words));
}

function candidate(one: Candidate, observed: number): HTMLTableRowElement {
  const { success } = one;
  const bar = element("div", { class: "bar" });
  if (success) {
    const width = success.high - success.low;
    bar.append(
      element("i", { class: "interval", style: `left:${100 * success.low}%;width:${100 * width}%` }),
      element("i", { class: "median", style: `left:${100 * success.median}%` }),
    );
  }
  return element(
    "tr",
    { class: one.token?.id === observed ? "observed" : "" },
    element("td", { class: "text" }, visible(one.token?.text ?? "")),
    element("td", { class: "number" }, percent(one.probability)),
    element("td", {}, bar),
    element("td", { class: "number" }, success ? percent(success.median) : ""),
    element("td", { class: "number dim" }, String(one.rollouts)),
  );
}

function interval({ median, low, high }: Interval): string {
  return `${signed(median)} (${signed(low)} to ${signed(high)})`;
}

function range({ low, high }: Interval): string {
  return `${percent(low)} to ${percent(high)}`;
}
