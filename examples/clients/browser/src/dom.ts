// Elements without a framework. Texts are only ever set as text: generations may hold anything.

type Child = Node | string;
type Properties = { class?: string; title?: string; style?: string; on?: Record<string, (event: Event) => void> } & {
  [attribute: string]: unknown;
};

/** An element with its attributes and children. */
export function element<K extends keyof HTMLElementTagNameMap>(
  name: K,
  properties: Properties = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "on") {
      for (const [event, listener] of Object.entries(properties.on ?? {})) {
        made.addEventListener(event, listener);
      }
    } else if (key === "style") {
      made.style.cssText = String(value); // allowed by the page's policy, unlike the attribute
    } else if (value !== undefined && value !== false) {
      made.setAttribute(key, value === true ? "" : String(value));
    }
  }
  made.append(...children);
  return made;
}

/** The page's element of that id. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}
