// The list of what is stored.

import { trajectories } from "./api.js";
import { byId, element } from "./dom.js";
import { FinishReason, Outcome, type Trajectory } from "./gen/unmask/v1/trajectory_pb.js";

const PAGE = 30;

/** The generations of a policy, page by page on demand. */
export class Generations {
  private next = "";
  private wanted = 0;

  constructor(private readonly choose: (id: string) => void) {
    byId("more").addEventListener("click", () => void this.more());
  }

  /** Shows the first page of what the filters let through. Rejects if the server does. */
  async show(): Promise<void> {
    byId("list").replaceChildren();
    this.next = "";
    await this.load(++this.wanted);
  }

  /** Marks the one that is shown. */
  mark(id: string): void {
    for (const button of byId("list").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.id === id));
    }
  }

  /** The first one of the list, if there is one. */
  first(): string | undefined {
    return byId("list").querySelector("button")?.dataset.id;
  }

  private more(): Promise<void> {
    return this.load(this.wanted);
  }

  private async load(wanted: number): Promise<void> {
    const answer = await trajectories.listTrajectories({
      policy: byId<HTMLSelectElement>("policy").value,
      outcome: Number(byId<HTMLSelectElement>("outcome").value) as Outcome,
      pageSize: PAGE,
      pageToken: this.next,
    });
    if (wanted !== this.wanted) return; // the filters were changed meanwhile
    this.next = answer.nextPageToken;
    byId("more").hidden = !this.next;
    byId("list").append(...answer.trajectories.map((one) => this.item(one)));
    byId("empty").hidden = byId("list").childElementCount > 0;
  }

  private item(one: Trajectory): HTMLLIElement {
    const button = element(
      "button",
      { type: "button", "data-id": one.id, on: { click: () => this.choose(one.id) } },
      outcomeBadge(one),
      element("span", { class: "snippet" }, one.text || one.id),
    );
    return element("li", {}, button);
  }
}

/** Whether it succeeded, as a mark with words. */
export function outcomeBadge(one: Trajectory): HTMLSpanElement {
  const correct = one.reward > 0.5;
  const cut = one.finishReason === FinishReason.LENGTH;
  const words = correct ? "correct" : cut ? "cut off" : "incorrect";
  return element("span", { class: `badge ${correct ? "good" : "bad"}`, title: `reward ${one.reward}` }, words);
}
