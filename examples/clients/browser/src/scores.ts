// What is known about a token, sorted for the eye, in the words and colours of `unmask view`.

import { AlignmentStatus, type Alignment } from "./gen/unmask/v1/diagnosis_pb.js";

/** From this probability on a token counts as decided: its 90% interval lies beside zero. */
const SURE = 0.95;
const RED = [203, 36, 49];
const GREY = [112, 117, 124];
const GREEN = [16, 132, 80];
/** The share of its colour that an undecided token keeps. */
const WASHED_OUT = 0.35;

export type Verdict =
  | "helps"
  | "hurts"
  | "undecided"
  | "flat"
  | "no-signal"
  | "unbounded"
  | "no-data"
  | "not-covered";

export const MEANINGS: Record<Verdict, string> = {
  helps: "pushes towards success",
  hurts: "pushes away from it",
  undecided: "undecided: the interval includes 0",
  flat: "flat: no effect on success to be seen",
  "no-signal": "the teacher says nothing here",
  unbounded: "infinite loss: the teacher excludes a token",
  "no-data": "no rollout yet",
  "not-covered": "nothing is stored of the teacher here",
};

const BY_STATUS: Partial<Record<AlignmentStatus, Verdict>> = {
  [AlignmentStatus.FLAT]: "flat",
  [AlignmentStatus.NO_SIGNAL]: "no-signal",
  [AlignmentStatus.UNBOUNDED]: "unbounded",
  [AlignmentStatus.NOT_COVERED]: "not-covered",
};

/** How to sort an alignment. */
export function verdict(alignment: Alignment): Verdict {
  if (!alignment.cosine) return BY_STATUS[alignment.status] ?? "no-data";
  const positive = alignment.probabilityPositive ?? 0.5;
  return positive >= SURE ? "helps" : positive <= 1 - SURE ? "hurts" : "undecided";
}

/** Whether a verdict has a cosine. */
export function isScored(of: Verdict): boolean {
  return of === "helps" || of === "hurts" || of === "undecided";
}

/** The background of a scored token: red at -1, grey at 0, green at +1. */
export function shade(cosine: number, decided: boolean): string {
  const strength = Math.min(Math.abs(cosine), 1) * (decided ? 1 : WASHED_OUT);
  const end = cosine > 0 ? GREEN : RED;
  return `rgb(${GREY.map((grey, i) => Math.round(grey + (end[i] - grey) * strength)).join(" ")})`;
}

/** A cosine or another signed number, to two digits. */
export function signed(value: number): string {
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
}

/** A share as a percentage. */
export function percent(share: number): string {
  return share > 0 && share < 0.01 ? "<1%" : `${Math.round(100 * share)}%`;
}

/** A token's text as it can be seen: no control characters, something where there is nothing. */
export function visible(text: string): string {
  if (!text) return "∅";
  return text.replaceAll(/\r?\n/g, "⏎").replaceAll("\t", "→").replaceAll(/\p{C}/gu, "�");
}
