// What scrolls says so, where there is more of it than the page is wide.
const mark = () => {
  for (const frame of document.querySelectorAll(".hd-scroll")) {
    frame.toggleAttribute("data-more", frame.scrollWidth > frame.clientWidth + 1);
  }
};
window.addEventListener("resize", mark);

// What the theme and docutils leave undone for screen readers: the folding arrows of the contents have no name, and
// the entries of a bibliography carry roles that contradict one another. The theme lets the keyboard reach what scrolls,
// but may look before the page has its final layout: it looks again when told that the window has changed.
document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll("nav summary")) {
    const link = summary.parentElement.parentElement.querySelector("a");
    summary.setAttribute("aria-label", "Pages of " + (link ? link.textContent.trim() : "this part"));
  }
  for (const entry of document.querySelectorAll(".citation-list, .citation")) {
    entry.removeAttribute("role");
  }
});
window.addEventListener("load", () => document.fonts.ready.then(() => window.dispatchEvent(new Event("resize"))));

// Paper is white, whatever the screen is.
const { dataset } = document.documentElement;
let theme;
window.addEventListener("beforeprint", () => { theme = dataset.theme; dataset.theme = "light"; });
window.addEventListener("afterprint", () => { dataset.theme = theme; });
