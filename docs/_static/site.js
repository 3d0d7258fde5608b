// What scrolls sideways can be reached, and scrolled, with the keyboard.
document.addEventListener("DOMContentLoaded", () => {
  for (const each of document.querySelectorAll("article pre, .table-wrapper")) each.tabIndex = 0;
});
