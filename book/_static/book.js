// What scrolls says so, where there is more of it than the page is wide, and can be reached with the keyboard.
const nameOf = (frame) => {
  const figure = frame.closest("figure");
  if (figure) return "Figure: " + (figure.querySelector("figcaption")?.textContent.split(/[.:] /)[0] ?? "");
  const headings = [...document.querySelectorAll("article :is(h1, h2, h3)")];
  const above = headings.filter((h) => h.compareDocumentPosition(frame) & Node.DOCUMENT_POSITION_FOLLOWING).pop();
  return "Table" + (above ? ": " + above.firstChild.textContent.trim() : "");
};
const mark = () => {
  for (const frame of document.querySelectorAll(".hd-scroll")) {
    const more = frame.scrollWidth > frame.clientWidth + 1;
    frame.toggleAttribute("data-more", more);
    if (more) {
      frame.tabIndex = 0;
      frame.setAttribute("role", "region");
      frame.setAttribute("aria-label", nameOf(frame));
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) frame.removeAttribute(name);
    }
  }
};
window.addEventListener("resize", mark);

// What the theme and docutils leave undone for screen readers: the folding arrows of the contents have no name, and
// the entries of a bibliography carry roles that contradict one another. The theme lets the keyboard reach what scrolls,
// but may look before the page has its final layout: it looks again when told that the window has changed.
document.addEventListener("DOMContentLoaded", () => {
  for (const frame of document.querySelectorAll(".pst-scrollable-table-container")) frame.classList.add("hd-scroll");
  for (const summary of document.querySelectorAll("nav summary")) {
    const link = summary.parentElement.parentElement.querySelector("a");
    summary.setAttribute("aria-label", "Pages of " + (link ? link.textContent.trim() : "this part"));
  }
  for (const entry of document.querySelectorAll(".citation-list, .citation")) {
    entry.removeAttribute("role");
  }
});
window.addEventListener("load", () => document.fonts.ready.then(() => window.dispatchEvent(new Event("resize"))));

// Paper is white, whatever the screen is, and has the figures that were not scrolled to.
const { dataset } = document.documentElement;
let theme;
window.addEventListener("beforeprint", () => {
  theme = dataset.theme;
  dataset.theme = "light";
  for (const image of document.images) image.loading = "eager";
});
window.addEventListener("afterprint", () => { dataset.theme = theme; });
