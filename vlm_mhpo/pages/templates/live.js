// A page that is served while its run trains: ask for the state, and when it has changed fetch the page again and take
// over the parts that differ. A part that the reader is in (focus, selected text) waits until he has left it.
"use strict";
(function () {
  const EVERY_MS = 2000;
  const status = document.getElementById("live");
  const parts = (page) => [page.getElementById("head"), ...page.querySelectorAll("main > section[id]")].filter(Boolean);
  const written = new Map(parts(document).map((part) => [part.id, part.outerHTML]));
  let version = document.documentElement.dataset.version;

  // Without the origin a page whose address carries a password could not ask at all.
  const get = (path) => fetch(location.origin + path, { cache: "no-store" }).then(function (answer) {
    if (!answer.ok) throw new Error(answer.status);
    return answer;
  });

  function isInUse(part) {
    const selection = getSelection();
    return part.contains(document.activeElement) || (!selection.isCollapsed && selection.containsNode(part, true));
  }

  function openDetails(part) {
    return new Set([...part.querySelectorAll("details[open] > summary")].map((s) => s.textContent.replace(/\d+/g, "")));
  }

  // True when every part is up to date.
  function takeOver(page) {
    let isComplete = true;
    let last = null;
    for (const part of parts(page)) {
      const html = part.outerHTML;
      const old = document.getElementById(part.id);
      if (!old) {
        if (last && last.id !== "head") last.after(part);
        else document.querySelector("main").prepend(part);
        written.set(part.id, html);
      } else if (written.get(part.id) !== html) {
        if (isInUse(old)) {
          isComplete = false;
          last = old;
          continue;
        }
        const open = openDetails(old);
        for (const summary of part.querySelectorAll("details > summary")) {
          if (open.has(summary.textContent.replace(/\d+/g, ""))) summary.parentElement.open = true;
        }
        old.replaceWith(part);
        written.set(part.id, html);
      }
      last = document.getElementById(part.id);
    }
    window.dispatchEvent(new Event("hashchange"));
    return isComplete;
  }

  // Screen readers speak every change of the line, so it changes only with what it says.
  function say(line) {
    if (status.textContent !== line) status.textContent = line;
  }

  async function look() {
    try {
      const state = await (await get("/state.json")).json();
      if (state.version !== version) {
        const page = new DOMParser().parseFromString(await (await get("/")).text(), "text/html");
        if (takeOver(page)) version = page.documentElement.dataset.version;
      }
      const step = state.step === null ? "no step yet" : "step " + state.step;
      const minutes = Math.floor((state.age_s || 0) / 60);
      say("live: " + step + (minutes ? ", nothing new for " + minutes + " min" : ""));
    } catch (error) {
      say("The monitor does not answer (" + error.message + "); the page keeps asking.");
    }
    setTimeout(look, EVERY_MS);
  }
  setTimeout(look, EVERY_MS);
})();
