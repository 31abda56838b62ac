// The page: which generation, which teachers, which loss. The address keeps the choice.

import { all, catalog, explain, setToken, trajectories, wantsToken } from "./api.js";
import { byId, element } from "./dom.js";
import { outcomeBadge, Generations } from "./generations.js";
import type { Loss } from "./gen/unmask/v1/diagnosis_pb.js";
import { shade } from "./scores.js";
import { View } from "./view.js";

const AT_FIRST = 3; // teachers chosen when the page opens

const view = new View();
const list = new Generations((id) => {
  location.hash = id;
});
const labels = new Map<string, string>();

/** Does something that talks to the server, and shows what went wrong. */
async function trying(what: () => Promise<void>): Promise<void> {
  byId("error").hidden = true;
  try {
    await what();
  } catch (error) {
    byId("error-text").textContent = explain(error);
    byId("login").hidden = !wantsToken(error);
    byId("error").hidden = false;
  }
}

async function loadCatalog(): Promise<void> {
  const policy = byId<HTMLSelectElement>("policy");
  for await (const one of all(async (pageToken) => {
    const { policies, nextPageToken } = await catalog.listPolicies({ pageToken });
    return { items: policies, nextPageToken };
  })) {
    policy.append(element("option", { value: one.id }, one.name || one.id));
  }
  for await (const one of all(async (pageToken) => {
    const { teachers, nextPageToken } = await catalog.listTeachers({ pageToken });
    return { items: teachers, nextPageToken };
  })) {
    labels.set(one.id, one.name || one.id);
    const box = element("input", { type: "checkbox", value: one.id, checked: labels.size <= AT_FIRST });
    byId("teachers").append(element("label", {}, box, labels.get(one.id)!));
  }
}

function chosenTeachers(): Map<string, string> {
  const boxes = byId("teachers").querySelectorAll<HTMLInputElement>("input:checked");
  return new Map([...boxes].map((box) => [box.value, labels.get(box.value)!]));
}

async function show(): Promise<void> {
  const id = location.hash.slice(1) || list.first();
  byId("generation").hidden = !id;
  if (!id) return;
  list.mark(id);
  const { trajectory } = await trajectories.getTrajectory({ trajectory: id });
  const { question } = await catalog.getQuestion({ question: trajectory!.questionId });
  byId("question").textContent = question!.fields["question"] ?? question!.name;
  byId("answer").textContent = question!.fields["answer"] ?? "";
  byId("outcome-of").replaceChildren(outcomeBadge(trajectory!));
  byId("hint").hidden = chosenTeachers().size > 0;
  const loss = Number(byId<HTMLSelectElement>("loss").value) as Loss;
  await view.show(trajectory!, chosenTeachers(), loss);
}

function legend(): void {
  const steps = [-1, -0.5, 0, 0.5, 1].map((cosine) => {
    const step = element("span", { class: "chip" }, cosine ? String(cosine).replace("-", "−") : "0");
    step.style.backgroundColor = shade(cosine, true);
    return step;
  });
  byId("legend").append("hurts ", ...steps, " helps · pale: undecided · dim: no score");
}

async function start(): Promise<void> {
  byId("teachers").replaceChildren();
  byId("policy").replaceChildren(element("option", { value: "" }, "all students"));
  labels.clear();
  await loadCatalog();
  await list.show();
  await show();
}

legend();
byId("policy").addEventListener("change", () => void trying(() => list.show()));
byId("outcome").addEventListener("change", () => void trying(() => list.show()));
byId("teachers").addEventListener("change", () => void trying(show));
byId("loss").addEventListener("change", () => void trying(show));
addEventListener("hashchange", () => void trying(show));
byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId<HTMLInputElement>("secret").value);
  byId<HTMLInputElement>("secret").value = "";
  void trying(start);
});
void trying(start);
