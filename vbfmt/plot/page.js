"use strict";
// Shows the value below the pointer. All positions are fractions of a picture's width and height;
// everything from a file goes onto the page as textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const bubble = document.getElementById("value");

const finders = {
  strips(hover, x) {
    let low = 0, high = hover.edges.length - 1;
    if (x < hover.edges[0] || x >= hover.edges[high]) return null;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (x < hover.edges[middle]) high = middle; else low = middle;
    }
    return { values: at(hover.columns, low),
             mark: [hover.edges[low], hover.box[1], hover.edges[high], hover.box[3]] };
  },
  points(hover, x, y, picture) {
    let best = -1, least = 20 * 20;
    for (let i = 0; i < hover.x.length; i++) {
      const dx = (hover.x[i] - x) * picture.width, dy = (hover.y[i] - y) * picture.height;
      if (dx * dx + dy * dy < least) { least = dx * dx + dy * dy; best = i; }
    }
    if (best < 0) return null;
    return { values: at(hover.columns, best), point: [hover.x[best], hover.y[best]] };
  },
  cells(hover, x, y) {
    const [left, top, right, bottom] = hover.box;
    const wide = (right - left) / hover.columns.length, high = (bottom - top) / hover.rows.length;
    const column = Math.min(Math.floor((x - left) / wide), hover.columns.length - 1);
    const row = Math.min(Math.floor((y - top) / high), hover.rows.length - 1);
    const values = at(hover.values, row * hover.columns.length + column);
    if (Object.values(values).includes(null)) return null;
    values.column = hover.columns[column];
    values.row = hover.rows[row];
    return { values, mark: [left + column * wide, top + row * high,
                            left + (column + 1) * wide, top + (row + 1) * high] };
  },
};

function at(columns, position) {
  const values = Object.create(null);
  for (const name of Object.keys(columns)) values[name] = columns[name][position];
  return values;
}

function find(hovers, x, y, picture) {
  for (const hover of hovers) {
    const [left, top, right, bottom] = hover.box;
    if (x < left || x > right || y < top || y > bottom) continue;
    const found = finders[hover.kind](hover, x, y, picture);
    if (!found) return null;
    const text = hover.text.replace(/\{(\w+)\}/g, (all, name) => name in found.values ? found.values[name] : all);
    return { ...found, text };
  }
  return null;
}

function place(mark, found) {
  const percent = (value) => `${100 * value}%`;
  mark.className = found.point ? "mark point" : "mark";
  const [left, top, right, bottom] = found.point ? [...found.point, 0, 0] : found.mark;
  mark.style.left = percent(left);
  mark.style.top = percent(top);
  mark.style.width = found.point ? "" : percent(right - left);
  mark.style.height = found.point ? "" : percent(bottom - top);
}

for (const name of Object.keys(data)) {
  const picture = document.querySelector(`#${name} .picture`);
  const mark = document.createElement("div");
  mark.hidden = true;
  picture.append(mark);
  const show = (event) => {
    const area = picture.getBoundingClientRect();
    const found = find(data[name], (event.clientX - area.left) / area.width,
                       (event.clientY - area.top) / area.height, area);
    bubble.hidden = mark.hidden = !found;
    if (!found) return;
    place(mark, found);
    bubble.textContent = found.text;
    const left = Math.min(event.clientX + 14, innerWidth - bubble.offsetWidth - 8);
    const above = event.clientY + 18 + bubble.offsetHeight > innerHeight;
    bubble.style.left = `${Math.max(left, 8)}px`;
    bubble.style.top = `${above ? event.clientY - bubble.offsetHeight - 12 : event.clientY + 18}px`;
  };
  picture.addEventListener("pointermove", show);
  picture.addEventListener("pointerdown", show);
  picture.addEventListener("pointerleave", () => { bubble.hidden = mark.hidden = true; });
}
