"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];

  // Charts are drawn on canvases, which style sheets do not reach.
  const paint = (plots) => {
    const style = getComputedStyle(document.documentElement);
    const [text, dim, line] = ["--text", "--dim", "--line"].map((name) =>
      style.getPropertyValue(name).trim(),
    );
    for (const plot of plots) {
      for (const part of [...plot.below, ...plot.left]) {
        part.setv({ axis_line_color: dim, major_tick_line_color: dim, major_label_text_color: text });
      }
      for (const part of plot.center) {
        if ("grid_line_color" in part) part.setv({ grid_line_color: line });
      }
      for (const part of plot.renderers) {
        if (part.name === "text-colour") part.glyph.setv({ line_color: text });
      }
    }
  };
  const roots = () => Bokeh.documents.flatMap((drawn) => drawn.roots());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(roots()));

  // A run of many tasks has hundreds of charts: each is drawn when it is about to be seen.
  const items = JSON.parse(document.getElementById("plots").textContent);
  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        const item = items[target.id];
        Bokeh.embed.embed_item(item, target.id).then(() => {
          paint(roots().filter((root) => root.id === item.root_id));
          target.dataset.drawn = "true";
        });
      }
    },
    { rootMargin: "400px" },
  );
  for (const plot of all(".plot")) near.observe(plot);

  const search = document.getElementById("search");
  const outcome = document.getElementById("outcome");
  const boxes = all("[data-shows]");
  const show = () => {
    const shown = new Set(boxes.filter((box) => box.checked).map((box) => box.dataset.shows));
    for (const element of all("[data-task]")) {
      element.hidden = !shown.has(element.dataset.task);
    }
    if (!search) return;
    const words = search.value.toLowerCase().split(/\s+/);
    const cards = all("article");
    for (const card of cards) {
      const text = card.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word));
      const wanted = !outcome.value || card.dataset.outcome.split(" ").includes(outcome.value);
      card.hidden = card.hidden || !fits || !wanted;
    }
    const left = cards.filter((card) => !card.hidden).length;
    document.getElementById("shown").textContent = `${left} of ${cards.length}`;
  };
  for (const box of boxes) box.addEventListener("change", show);
  if (search) {
    search.form.addEventListener("submit", (event) => event.preventDefault());
    search.addEventListener("input", show);
    outcome.addEventListener("change", show);
  }
  show();
})();
