// The gallery's filters: show the cards of one outcome, keep the choice in the address, print what is shown.
// Nothing is remembered of the page's elements: a live page replaces them.
"use strict";
(function () {
  const radios = () => [...document.querySelectorAll('input[name="outcome"]')];

  function show(radio) {
    const outcome = radio.value;
    const total = radio.parentElement.querySelector("b").textContent;
    let shown = 0;
    for (const card of document.querySelectorAll("#gallery .card")) {
      card.hidden = outcome !== "all" && card.dataset.outcome !== outcome;
      if (!card.hidden) shown += 1;
    }
    document.getElementById("shown").textContent = shown + " of " + total + " shown";
  }

  function fromAddress() {
    const wanted = decodeURIComponent(location.hash.slice(1));
    const radio = radios().find((r) => r.value === wanted) || radios()[0];
    if (!radio) return;
    radio.checked = true;
    show(radio);
  }

  document.addEventListener("change", function (event) {
    if (event.target.name !== "outcome") return;
    history.replaceState(null, "", "#" + event.target.value);
    show(event.target);
  });
  window.addEventListener("hashchange", fromAddress);
  fromAddress();
})();
