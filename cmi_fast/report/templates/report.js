"use strict";
(() => {
  const { map, colours } = JSON.parse(document.getElementById("data").textContent);
  const svg = document.getElementById("map");
  if (!svg) return;
  const choice = document.getElementById("user"), told = document.getElementById("told");
  const width = 720, margin = 26;
  const size = Math.min(1.7, Math.max(1, width / (svg.clientWidth || width)));  // of symbols: not too small on a phone

  // One scale for both axes, wide enough for every item and interest on the page.
  const all = map.xy.concat(...map.users.map((user) => user.interests));
  const range = [0, 1].map((axis) => {
    const values = all.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
  const [across, up] = range.map(([low, high]) => Math.max(high - low, 1e-9));
  const height = Math.min(620, Math.max(360, (width * up) / across));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const scale = Math.min((width - 2 * margin) / across, (height - 2 * margin) / up);
  const x = (point) => width / 2 + (point[0] - (range[0][0] + range[0][1]) / 2) * scale;
  const y = (point) => height / 2 - (point[1] - (range[1][0] + range[1][1]) / 2) * scale;
  const colour = (number) => colours[number % colours.length];

  const draw = (parent, name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text) {
      element.dataset.told = text;
      element.setAttribute("aria-label", text);
    }
    parent.append(element);
    return element;
  };
  const item = (place) => map.ids[place] + (map.groups ? `, category ${map.groups[place] + 1}` : "");
  const star = (cx, cy, r) =>
    Array.from({ length: 10 }, (_, corner) => {
      const angle = -Math.PI / 2 + (corner * Math.PI) / 5, radius = corner % 2 ? r * 0.45 : r;
      return `${(cx + radius * Math.cos(angle)).toFixed(1)},${(cy + radius * Math.sin(angle)).toFixed(1)}`;
    }).join(" ");

  const background = draw(svg, "g", { "fill-opacity": 0.28 });
  for (let place = 0; place < map.background; place++) {
    const fill = map.groups ? colour(map.groups[place]) : "#94a3b8";
    draw(background, "circle", { cx: x(map.xy[place]).toFixed(1), cy: y(map.xy[place]).toFixed(1), r: 2.6 * size, fill }, `item ${item(place)}`);
  }
  const front = draw(svg, "g", {});

  const row = (table, name, parts) => {
    const line = table.insertRow(), head = document.createElement("th");
    head.textContent = name;
    line.append(head);
    const cell = line.insertCell();
    for (const [text, edge] of parts) {
      const part = document.createElement("i");
      part.textContent = text;
      if (edge) part.style.borderColor = edge;
      cell.append(part);
    }
  };

  const show = (number) => {
    const user = map.users[number];
    choice.value = number;
    front.replaceChildren();
    user.list.forEach((place, rank) => {
      const from = user.interests[user.by[rank]];
      draw(front, "line", { x1: x(from), y1: y(from), x2: x(map.xy[place]), y2: y(map.xy[place]), stroke: colour(user.by[rank]), "stroke-opacity": 0.35 });
    });
    user.history.forEach((place, age) => {
      const opacity = 0.25 + (0.7 * (age + 1)) / user.history.length;
      const text = `played ${item(place)}, ${user.history.length - age} from the last`;
      draw(front, "circle", { cx: x(map.xy[place]), cy: y(map.xy[place]), r: 4.2 * size, fill: "#16202e", "fill-opacity": opacity.toFixed(2) }, text);
    });
    user.list.forEach((place, rank) => {
      const text = `recommended ${rank + 1}: ${item(place)}, by interest ${user.by[rank] + 1}`;
      draw(front, "rect", { x: x(map.xy[place]) - 4.5 * size, y: y(map.xy[place]) - 4.5 * size, width: 9 * size, height: 9 * size, rx: 1.5, fill: "#fff", stroke: colour(user.by[rank]), "stroke-width": 2.2 }, text);
    });
    user.interests.forEach((point, interest) => {
      const text = `interest ${interest + 1}: ${user.by.filter((by) => by === interest).length} of the ${user.list.length} recommended`;
      draw(front, "polygon", { points: star(x(point), y(point), 11 * size), fill: colour(interest), stroke: "#fff", "stroke-width": 1.2 }, text);
    });
    const table = document.getElementById("lists");
    table.caption.textContent = `User ${user.id}: ${user.plays} plays`;
    table.tBodies[0].replaceChildren();
    row(table.tBodies[0], "played, last first", user.history.slice().reverse().map((place) => [map.ids[place]]));
    row(table.tBodies[0], "recommended", user.list.map((place, rank) => [map.ids[place], colour(user.by[rank])]));
  };

  const step = (by) => show((Number(choice.value) + by + map.users.length) % map.users.length);
  choice.addEventListener("change", () => show(Number(choice.value)));
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  svg.addEventListener("pointermove", (event) => {
    const text = event.target.dataset.told, box = svg.parentElement.getBoundingClientRect();
    told.style.display = text ? "block" : "none";
    told.textContent = text || "";
    const left = event.clientX - box.left;
    told.style.left = `${Math.max(4, left + 14 + told.offsetWidth > box.width ? left - 14 - told.offsetWidth : left + 14)}px`;
    told.style.top = `${event.clientY - box.top + 12}px`;
  });
  svg.addEventListener("pointerleave", () => (told.style.display = "none"));
  // report.html#user=ID opens with that user.
  const wanted = new URLSearchParams(location.hash.slice(1)).get("user");
  show(Math.max(0, map.users.findIndex((user) => user.id === wanted)));
})();
