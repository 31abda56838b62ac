// Looks at the page as a person would, and tells what there is: for tests.
//
//     node look.mjs URL FOLDER     # screenshots go into FOLDER, a line of JSON to stdout
//
// CHROMIUM: the browser; /usr/bin/chromium unless set.

import { chromium } from "playwright-core";

const [url, folder] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
});
const wrong = [];
const found = { wrong };

async function open(options) {
  const page = await browser.newPage(options);
  page.setDefaultTimeout(180_000);
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  await page.goto(url);
  await filled(page);
  return page;
}

/** Waits until every token of every block has its answer, or the block says why not. */
async function filled(page) {
  await page.waitForSelector(".block .token");
  await page.waitForFunction(() =>
    [...document.querySelectorAll(".block")].every(
      (block) => !block.querySelector(".pending") || block.querySelector(".failed"),
    ),
  );
}

/** Each teacher's tokens, by what is known of them. */
function blocks(page) {
  return page.$$eval(".block", (all) =>
    Object.fromEntries(
      all.map((block) => {
        const counts = {};
        for (const token of block.querySelectorAll(".token")) {
          counts[token.classList[1]] = (counts[token.classList[1]] ?? 0) + 1;
        }
        return [block.querySelector("h3").textContent, counts];
      }),
    ),
  );
}

const light = await open({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
found.generations = await light.locator("#list button").count();
found.question = await light.textContent("#question");
found.text = await light.locator(".block").first().locator(".tokens").textContent();
found.blocks = await blocks(light);
const scored = light.locator(".block").first().locator(".token.helps, .token.hurts, .token.undecided");
found.colours = await scored.evaluateAll((all) => all.map((one) => getComputedStyle(one).backgroundColor));
await scored.first().click();
await light.waitForSelector("#candidates tr");
found.title = await light.textContent("#token-title");
found.pushes = await light.locator("#pushes li").allTextContents();
found.candidates = await light.locator("#candidates tr").count();
await light.screenshot({ path: `${folder}/light.png`, fullPage: true });

// Another loss, another generation, one teacher fewer.
await light.selectOption("#loss", { label: "forward KL" });
await filled(light);
found.forward = await blocks(light);
await light.locator("#list button").nth(1).click();
await light.waitForFunction(() => location.hash.startsWith("#trj-"));
await light.locator("#teachers input").first().uncheck();
await light.waitForFunction((n) => document.querySelectorAll(".block").length === n, Object.keys(found.blocks).length - 1);
await filled(light);
found.fewer = await blocks(light);
await light.selectOption("#outcome", { label: "correct" });
await light.waitForFunction(() => !document.querySelector("#list .bad"));
found.correct = await light.locator("#list button").count();

const dark = await open({ viewport: { width: 1280, height: 900 }, colorScheme: "dark" });
await dark.screenshot({ path: `${folder}/dark.png`, fullPage: true });
const phone = await open({ viewport: { width: 390, height: 844 }, colorScheme: "light" });
found.overflow = await phone.evaluate(() => document.documentElement.scrollWidth - innerWidth);
await phone.screenshot({ path: `${folder}/phone.png` });

// What went wrong is told.
await phone.goto(`${url}#trj-none`);
await phone.waitForSelector("#error:not([hidden])");
found.error = await phone.textContent("#error-text");

await browser.close();
console.log(JSON.stringify(found));
