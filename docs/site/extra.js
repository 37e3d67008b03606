// The theme puts each table into a box that scrolls where the table is wider than the window. Where it does, the
// keyboard must be able to reach the box (WCAG 2.1.1).
const letKeyboardScroll = () => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
new MutationObserver(letKeyboardScroll).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", letKeyboardScroll);
letKeyboardScroll();
