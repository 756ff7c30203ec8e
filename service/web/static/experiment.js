// One experiment, live: its state, its curves and the end of its log.
"use strict";

const place = document.getElementById("experiment");
const url = `/experiments/${place.dataset.experiment}`;
const MAX_LOG_LINES = 500;
const curves = new Map();

function draw(curve) {
  const rows = [...curve.points].sort((one, other) => one[0] - other[0]);
  curve.plot.setData([rows.map((row) => row[0]), rows.map((row) => row[1])]);
}

for (const element of document.querySelectorAll(".curve")) {
  const series = [{ label: "step" }, { label: element.dataset.key, stroke: "#2a6fb0", width: 1.5 }];
  const options = { width: 520, height: 240, scales: { x: { time: false } }, series };
  curves.set(element.dataset.key, { points: new Map(), plot: new uPlot(options, [[], []], element) });
}

async function catchUp() {
  if (place.dataset.kind === "sweep" || !curves.size) return;
  const answer = await fetch(`${url}/metrics?max_points=2000&keys=${[...curves.keys()].join(",")}`);
  if (!answer.ok) return;
  for (const [key, points] of Object.entries((await answer.json()).series)) {
    const curve = curves.get(key);
    for (const point of points) curve.points.set(point.step, point.value);
    draw(curve);
  }
}

const events = new EventSource(`${url}/events`);
events.addEventListener("open", catchUp);
events.addEventListener("state", (event) => {
  const data = JSON.parse(event.data);
  const shown = document.getElementById("state");
  shown.textContent = data.state;
  shown.className = `state ${data.state}`;
  if (["succeeded", "failed", "cancelled"].includes(data.state)) events.close();
});
events.addEventListener("metric", (event) => {
  const { step, metrics } = JSON.parse(event.data);
  document.getElementById("step").textContent = `step ${step}`;
  for (const [key, value] of Object.entries(metrics)) {
    const curve = curves.get(key);
    if (curve === undefined) continue;
    curve.points.set(step, value);
    draw(curve);
  }
});
events.addEventListener("log", (event) => {
  const log = document.getElementById("log");
  const lines = log.textContent.split("\n").concat(JSON.parse(event.data).lines);
  log.textContent = lines.slice(-MAX_LOG_LINES).join("\n");
  log.scrollTop = log.scrollHeight;
});
