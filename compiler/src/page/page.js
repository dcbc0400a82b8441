'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const { steps, tensors } = data;
const $ = id => document.getElementById(id);
const count = steps.seconds.length;

// Numbers as the command line shows them: three digits, binary units.
function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let u = 0;
  while (n >= 1024 && u < 4) { n /= 1024; u++; }
  return (u === 0 ? n : n >= 100 ? n.toFixed(0) : n >= 10 ? n.toFixed(1) : n.toFixed(2)) + ' ' + units[u];
}
function time(s) {
  const [scale, unit] = s >= 1 ? [1, 's'] : s >= 1e-3 ? [1e3, 'ms'] : [1e6, 'µs'];
  return Number((s * scale).toPrecision(3)) + ' ' + unit;
}
const percent = x => (100 * x).toFixed(x < 0.0995 ? 1 : 0) + '%';
function add(parent, tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  parent.append(node);
  return node;
}
const colour = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();

const KINDS = [['parameter', 'parameters'], ['state', 'optimizer state'], ['input', 'inputs, outputs, constants'], ['gradient', 'gradients'],
  ['kept', 'kept for the backward pass'], ['recomputed', 'computed again'], ['temporary', 'temporary'], ['scratch', 'scratch']];
const lasting = kind => kind < 3;

// What is alive at each step, by kind, and when each step begins.
const live = KINDS.map(() => new Float64Array(count + 1));
tensors.name.forEach((_, i) => {
  live[tensors.kind[i]][tensors.first[i]] += tensors.bytes[i];
  live[tensors.kind[i]][tensors.last[i] + 1] -= tensors.bytes[i];
});
live.forEach(row => { for (let s = 1; s < row.length; s++) row[s] += row[s - 1]; });
const begins = new Float64Array(count + 1);
steps.seconds.forEach((s, i) => { begins[i + 1] = begins[i] + s; });
// Where addresses end that last the whole step.
const bottom = tensors.name.reduce((end, _, i) => lasting(tensors.kind[i]) && tensors.first[i] === 0 && tensors.last[i] === count - 1
  ? Math.max(end, tensors.offset[i] + tensors.bytes[i]) : end, 0);

function header() {
  document.title = data.model + ' · fp8c';
  $('model').textContent = data.model;
  const what = [data.purpose === 'train' ? 'training step' : 'inference', data.precision, data.optimizer, 'for ' + data.target,
    count + ' launches', data.compiler];
  $('about').textContent = what.filter(Boolean).join(' · ');
  const figure = (value, name) => { const f = add($('figures'), 'div', undefined, 'figure'); add(f, 'b', value); add(f, 'span', name); };
  figure(bytes(data.arena), 'planned memory, executed to the byte');
  figure(data.budget === null ? 'none' : bytes(data.budget), 'budget');
  if (data.purpose === 'train') {
    figure(bytes(data.least), 'least budget');
    figure(bytes(data.baseline), 'usual mixed precision, everything kept');
  }
  figure(time(data.predicted.step_seconds), 'predicted for a step');
  if (data.purpose === 'train') {
    figure(percent(data.predicted.recompute_seconds / Math.max(data.predicted.step_seconds, 1e-12)), 'of it recomputation');
    figure((100 * data.certificate.gap).toFixed(2) + '%', 'from the bound at most');
  }
  data.notes.forEach(n => add($('notes'), 'li', n));
  $('notes-section').hidden = data.notes.length === 0;
}

// A canvas in the pixels of the screen, with margins for its axes.
function canvas(id) {
  const c = $(id), ratio = window.devicePixelRatio || 1, box = c.getBoundingClientRect();
  c.width = Math.max(1, Math.round(box.width * ratio));
  c.height = Math.max(1, Math.round(box.height * ratio));
  const g = c.getContext('2d');
  g.scale(ratio, ratio);
  g.font = '11px system-ui, sans-serif';
  const left = 66, right = 10, top = 14, below = 20;
  return { g, left, top, width: box.width - left - right, height: box.height - top - below };
}
function ticks(most) {
  const rough = most / 5, power = 10 ** Math.floor(Math.log10(rough || 1)), step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough);
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
}
function byteTicks(least, most) {
  let step = 1;
  while (step * 6 < most - least) step *= 2;
  const all = [];
  for (let t = Math.ceil(least / step) * step; t <= most; t += step) all.push(t);
  return all;
}
function axes(p, yTicks, y, label, xTicks, x, xLabel) {
  p.g.strokeStyle = colour('line'); p.g.fillStyle = colour('soft'); p.g.lineWidth = 1;
  p.g.textAlign = 'right'; p.g.textBaseline = 'middle';
  yTicks.forEach(t => {
    const at = Math.round(y(t)) + 0.5;
    p.g.beginPath(); p.g.moveTo(p.left, at); p.g.lineTo(p.left + p.width, at); p.g.stroke();
    p.g.fillText(label(t), p.left - 6, at);
  });
  p.g.textBaseline = 'top';
  xTicks.forEach(t => {
    p.g.textAlign = x(t) > p.left + p.width - 30 ? 'right' : x(t) < p.left + 20 ? 'left' : 'center';
    p.g.fillText(xLabel(t), x(t), p.top + p.height + 5);
  });
}

const view = { step: null, tensor: null };
const scaled = () => $('by-time').checked;
const total = () => scaled() ? begins[count] : count;
const place = s => scaled() ? begins[s] : s;
const from = () => $('transients').checked ? bottom : 0;
const top_ = () => Math.max(data.arena, data.budget !== null && data.budget < 1.5 * data.arena ? data.budget : 0);
function horizontal(p) {
  const x = s => p.left + p.width * place(s) / Math.max(total(), 1e-12);
  const marks = ticks(total());
  return { x, marks, at: t => p.left + p.width * t / Math.max(total(), 1e-12), label: t => scaled() ? time(t) : 'launch ' + t };
}
function budgetLine(p, y) {
  if (data.budget === null || data.budget > top_()) return;
  p.g.strokeStyle = colour('budget'); p.g.fillStyle = colour('budget'); p.g.setLineDash([6, 4]); p.g.lineWidth = 1.5;
  p.g.beginPath(); p.g.moveTo(p.left, y(data.budget)); p.g.lineTo(p.left + p.width, y(data.budget)); p.g.stroke(); p.g.setLineDash([]);
  p.g.textAlign = 'right'; p.g.textBaseline = 'bottom';
  p.g.fillText('budget ' + bytes(data.budget), p.left + p.width - 4, y(data.budget) - 2);
}
let map;
function drawMap() {
  const p = map = canvas('map'), least = from(), most = top_();
  const h = horizontal(p);
  p.y = b => p.top + p.height * (1 - (b - least) / Math.max(most - least, 1));
  p.x = h.x; p.address = y => least + (most - least) * (1 - (y - p.top) / p.height);
  axes(p, byteTicks(least, most), p.y, bytes, h.marks, h.at, h.label);
  p.g.save(); p.g.beginPath(); p.g.rect(p.left, p.top, p.width, p.height); p.g.clip();
  const fill = KINDS.map(k => colour(k[0])), paper = colour('paper');
  for (let i = 0; i < tensors.name.length; i++) {
    if (tensors.offset[i] + tensors.bytes[i] <= least) continue;
    const x = p.x(tensors.first[i]), w = Math.max(p.x(tensors.last[i] + 1) - x, 0.6);
    const y = p.y(tensors.offset[i] + tensors.bytes[i]), z = p.y(tensors.offset[i]) - y;
    p.g.fillStyle = fill[tensors.kind[i]];
    p.g.fillRect(x, y, w, Math.max(z, 0.4));
    if (z > 4 && w > 4) { p.g.strokeStyle = paper; p.g.lineWidth = 0.6; p.g.strokeRect(x, y, w, z); }
  }
  p.g.restore();
  budgetLine(p, p.y);
  p.picture = p.g.getImageData(0, 0, $('map').width, $('map').height);
}
let area;
function drawLive() {
  const p = area = canvas('live'), h = horizontal(p);
  const shown = KINDS.map((_, k) => k).filter(k => !$('transients').checked || !lasting(k));
  let most = 1;
  const sums = new Float64Array(count);
  const stacks = shown.map(k => sums.map((_, s) => { sums[s] += live[k][s]; most = Math.max(most, sums[s]); return sums[s]; }));
  p.x = h.x; p.y = b => p.top + p.height * (1 - b / most);
  stacks.map((s, i) => [s, shown[i]]).reverse().forEach(([stack, k]) => {
    p.g.fillStyle = colour(KINDS[k][0]);
    p.g.beginPath(); p.g.moveTo(p.left, p.y(0));
    stack.forEach((b, s) => { p.g.lineTo(p.x(s), p.y(b)); p.g.lineTo(p.x(s + 1), p.y(b)); });
    p.g.lineTo(p.left + p.width, p.y(0)); p.g.fill();
  });
  const half = byteTicks(0, most).filter((_, i) => i % 2 === 0);
  axes(p, half, p.y, bytes, [], h.at, h.label);
  p.picture = p.g.getImageData(0, 0, $('live').width, $('live').height);
}
function cross() {
  for (const p of [map, area]) {
    p.g.putImageData(p.picture, 0, 0);
    if (view.step === null) continue;
    const x = (p.x(view.step) + p.x(view.step + 1)) / 2;
    p.g.strokeStyle = colour('cross'); p.g.lineWidth = 1;
    p.g.beginPath(); p.g.moveTo(x, p.top); p.g.lineTo(x, p.top + p.height); p.g.stroke();
  }
  if (view.tensor !== null) {
    const i = view.tensor, x = map.x(tensors.first[i]), y = map.y(tensors.offset[i] + tensors.bytes[i]);
    map.g.strokeStyle = colour('cross'); map.g.lineWidth = 2;
    map.g.strokeRect(x, y, Math.max(map.x(tensors.last[i] + 1) - x, 2), Math.max(map.y(tensors.offset[i]) - y, 2));
  }
  moment();
}
const siteOf = s => data.sites[steps.site[s]];
function moment() {
  const s = view.step, box = $('moment');
  box.textContent = '';
  if (s === null) { box.textContent = 'Point at the map: it names what is there and what runs. The arrow keys go launch by launch.'; return; }
  const sum = live.reduce((all, row) => all + row[s], 0);
  add(box, 'b', `launch ${s}: ${siteOf(s)}`);
  add(box, 'div', `${steps.epoch[s]} · ${data.families[steps.family[s]]} · ${time(steps.seconds[s])} · ${bytes(sum)} alive`);
  const alive = [];
  tensors.name.forEach((_, i) => { if (!lasting(tensors.kind[i]) && tensors.first[i] <= s && s <= tensors.last[i]) alive.push(i); });
  alive.sort((a, b) => tensors.bytes[b] - tensors.bytes[a]);
  add(box, 'div', alive.slice(0, 6).map(i => `${tensors.name[i]} ${bytes(tensors.bytes[i])}`).join(', ') + (alive.length > 6 ? `, and ${alive.length - 6} more` : ''));
}
function stepAt(p, x) {
  const t = (x - p.left) / p.width * total();
  if (t < 0 || t >= total()) return null;
  if (!scaled()) return Math.floor(t);
  let low = 0, high = count - 1;
  while (low < high) { const mid = (low + high + 1) >> 1; if (begins[mid] <= t) low = mid; else high = mid - 1; }
  return low;
}
function tip(lines, event) {
  const box = $('tip');
  box.textContent = '';
  lines.forEach((l, i) => add(box, i === 0 ? 'b' : 'small', l));
  box.hidden = false;
  const w = box.offsetWidth, h = box.offsetHeight;
  box.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - w - 4)) + 'px';
  box.style.top = Math.max(4, event.clientY + 18 + h > innerHeight ? event.clientY - h - 12 : event.clientY + 18) + 'px';
}
const hide = () => { $('tip').hidden = true; };
function pointed(event) {
  const box = $('map').getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  view.step = stepAt(map, x);
  view.tensor = null;
  const address = map.address(y), s = view.step;
  if (s !== null) for (let i = tensors.name.length - 1; i >= 0; i--) {
    if (tensors.first[i] <= s && s <= tensors.last[i] && tensors.offset[i] <= address && address < tensors.offset[i] + tensors.bytes[i]) { view.tensor = i; break; }
  }
  if (view.tensor === null) hide(); else {
    const i = view.tensor, a = tensors.first[i], b = tensors.last[i];
    const span = a === 0 && b === count - 1 ? 'the whole step' : a === b ? `launch ${a}` : `launches ${a} to ${b}: ${siteOf(a)} to ${siteOf(b)}`;
    tip([tensors.name[i], `${bytes(tensors.bytes[i])} · ${tensors.type[i]} · ${KINDS[tensors.kind[i]][1]}`, span], event);
  }
  cross();
}
function memory() {
  const used = KINDS.map((_, k) => tensors.kind.includes(k));
  KINDS.forEach(([name, text], k) => {
    if (!used[k]) return;
    const item = add($('legend'), 'span');
    add(item, 'i', '', 'key').style.background = `var(--${name})`;
    item.append(text);
  });
  const leave = () => { view.step = view.tensor = null; hide(); cross(); };
  $('map').addEventListener('pointermove', pointed);
  $('map').addEventListener('pointerdown', pointed);
  $('map').addEventListener('pointerleave', leave);
  $('live').addEventListener('pointermove', e => { view.tensor = null; view.step = stepAt(area, e.clientX - $('live').getBoundingClientRect().left); cross(); });
  $('live').addEventListener('pointerleave', leave);
  $('map').addEventListener('keydown', e => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (!move) return;
    e.preventDefault();
    view.step = Math.min(count - 1, Math.max(0, (view.step ?? -1) + move));
    view.tensor = null;
    cross();
  });
  for (const id of ['by-time', 'transients']) $(id).addEventListener('change', draw);
}

// Rows of a name, a strip of parts and a sum.
function rows(id, list) {
  const most = Math.max(...list.map(r => r.sum), 1e-300);
  list.forEach(r => {
    const row = add($(id), 'div', undefined, 'row');
    add(row, 'div', r.name, 'name');
    const strip = add(row, 'div', undefined, 'strip');
    r.parts.forEach(([value, shade, opacity]) => {
      const part = add(strip, 'i');
      part.style.width = 100 * value / most + '%';
      part.style.background = `var(--${shade})`;
      if (opacity) part.style.opacity = opacity;
    });
    add(row, 'div', r.label, 'sum');
    row.addEventListener('pointermove', e => tip([r.name, ...r.tip], e));
    row.addEventListener('pointerleave', hide);
  });
}
function layers() {
  const sum = (values, way) => values.filter(v => v.way === way).reduce((all, v) => all + v.bytes, 0);
  const list = data.layers.map(l => {
    const kept = sum(l.values, 'keep'), again = sum(l.values, 'recompute');
    const largest = [...l.values].sort((a, b) => b.bytes - a.bytes).slice(0, 12).map(v => `${v.way === 'keep' ? 'kept' : 'computed again'}: ${v.name}, ${bytes(v.bytes)}`);
    const more = l.values.length > 12 ? [`and ${l.values.length - 12} more`] : [];
    return { name: l.layer, sum: kept + again, label: bytes(kept), parts: [[kept, 'kept'], [again, 'recomputed']],
      tip: [`${bytes(kept)} kept, ${bytes(again)} computed again`, ...largest, ...more] };
  });
  $('layers-section').hidden = list.length === 0;
  $('layers-lead').textContent = `${bytes(data.ways.keep || 0)} kept (at the right, by layer), ${bytes(data.ways.recompute || 0)} computed again.`;
  rows('layers', list);
}
function families() {
  const epochs = [['forward', 'kept'], ['backward', 'temporary'], ['recompute', 'recomputed'], ['update', 'gradient']];
  const sums = data.families.map(() => ({}));
  const runs = data.families.map(() => 0);
  steps.seconds.forEach((s, i) => { const f = steps.family[i]; runs[f]++; sums[f][steps.epoch[i]] = (sums[f][steps.epoch[i]] || 0) + s; });
  const list = data.families.map((name, f) => {
    const sum = Object.values(sums[f]).reduce((a, b) => a + b, 0);
    return { name: name.replace(/_/g, ' '), sum, label: time(sum), parts: epochs.map(([e, shade]) => [sums[f][e] || 0, shade]),
      tip: [`${runs[f]} launches, ${percent(sum / Math.max(begins[count], 1e-12))} of the time`, ...epochs.filter(([e]) => sums[f][e]).map(([e]) => `${e}: ${time(sums[f][e])}`)] };
  }).sort((a, b) => b.sum - a.sum);
  const lead = $('families-lead');
  epochs.filter(([e]) => steps.epoch.includes(e)).forEach(([e, shade]) => { add(lead, 'i', '', 'key').style.background = `var(--${shade})`; lead.append(e + '  '); });
  rows('families', list);
}
function formats() {
  const passes = ['fprop', 'dgrad', 'wgrad'], names = ['e4m3', 'bf16', 'f32'];
  $('formats-section').hidden = data.matmuls.length === 0;
  const table = (parent, head, lines) => {
    const t = add(parent, 'table'), h = add(add(t, 'thead'), 'tr'), b = add(t, 'tbody');
    head.forEach(x => add(h, 'th', x));
    lines.forEach(l => { const r = add(b, 'tr'); l.forEach(x => add(r, 'td', x)); });
  };
  const of = (p, f) => data.matmuls.filter(m => m.pass === p && m.format === f).length;
  table($('formats'), ['pass', ...names], passes.map(p => [p, ...names.map(f => of(p, f) || '–')]));
  const by = new Map();
  data.matmuls.forEach(m => { if (!by.has(m.site)) by.set(m.site, {}); by.get(m.site)[m.pass] = m.format; });
  const more = add($('formats'), 'details');
  add(more, 'summary', `each of ${by.size} products`);
  table(add(more, 'div', undefined, 'scroll'), ['layer', ...passes], [...by].map(([site, f]) => [site, ...passes.map(p => f[p] || '–')]));
}
let curve;
function drawLoss() {
  if (!data.losses) return;
  const p = curve = canvas('loss'), points = data.losses;
  const xs = points.map(q => q[0]), ys = points.map(q => q[1]);
  const [x0, x1] = [xs[0], Math.max(xs[xs.length - 1], xs[0] + 1)];
  const low = ys.reduce((a, b) => Math.min(a, b)), high = Math.max(ys.reduce((a, b) => Math.max(a, b)), low + 1e-9);
  const pad = 0.05 * (high - low);
  p.x = s => p.left + p.width * (s - x0) / (x1 - x0);
  p.y = l => p.top + p.height * (1 - (l - low + pad) / (high - low + 2 * pad));
  const span = ticks(high - low).length > 1 ? ticks(high - low)[1] : high - low;
  const marks = [];
  for (let t = Math.ceil(low / span) * span; t <= high + pad; t += span) marks.push(t);
  axes(p, marks, p.y, l => Number(l.toPrecision(4)).toString(), ticks(x1).filter(t => t >= x0), p.x, s => 'step ' + s);
  const line = (list, shade, width, opacity) => {
    p.g.strokeStyle = colour(shade); p.g.lineWidth = width; p.g.globalAlpha = opacity; p.g.beginPath();
    list.forEach(([s, l], i) => i === 0 ? p.g.moveTo(p.x(s), p.y(l)) : p.g.lineTo(p.x(s), p.y(l)));
    p.g.stroke(); p.g.globalAlpha = 1;
  };
  // The mean of the steps around each one.
  const reach = Math.max(1, Math.round(points.length / 60)), sums = [0];
  points.forEach(([, l]) => sums.push(sums[sums.length - 1] + l));
  const smooth = points.map(([s], i) => {
    const from = Math.max(0, i - reach), to = Math.min(points.length, i + reach + 1);
    return [s, (sums[to] - sums[from]) / (to - from)];
  });
  line(points, 'kept', 1, points.length > 60 ? 0.35 : 1);
  if (points.length > 60) line(smooth, 'kept', 2, 1);
  p.picture = p.g.getImageData(0, 0, $('loss').width, $('loss').height);
}
function loss() {
  if (!data.losses) return;
  $('loss-section').hidden = false;
  const first = data.losses[0], last = data.losses[data.losses.length - 1];
  $('loss-lead').textContent = `${first[1].toPrecision(5)} at step ${first[0]}, ${last[1].toPrecision(5)} at step ${last[0]}.` +
    (data.losses.length > 60 ? ' The strong line is the mean of the steps around each one.' : '') + (data.each > 1 ? ` A point is the mean of ${data.each} steps.` : '');
  $('loss').addEventListener('pointermove', e => {
    const x = e.clientX - $('loss').getBoundingClientRect().left;
    const near = data.losses.reduce((a, b) => Math.abs(curve.x(b[0]) - x) < Math.abs(curve.x(a[0]) - x) ? b : a);
    curve.g.putImageData(curve.picture, 0, 0);
    curve.g.fillStyle = colour('cross');
    curve.g.beginPath(); curve.g.arc(curve.x(near[0]), curve.y(near[1]), 4, 0, 7); curve.g.fill();
    tip([`step ${near[0]}`, `loss ${near[1].toPrecision(6)}`], e);
  });
  $('loss').addEventListener('pointerleave', () => { curve.g.putImageData(curve.picture, 0, 0); hide(); });
}

function draw() { drawMap(); drawLive(); drawLoss(); cross(); }
header(); memory(); layers(); families(); formats(); loss(); draw();
addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
