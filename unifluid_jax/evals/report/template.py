"""The frame and the style sheet of the report page; no content of its own."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f6f3; --card: #fff; --ink: #1a1b1f; --soft: #5f6069;
  --line: #e3e3dd; --accent: #3652c9; --tint: #eaeefc; --track: #ecece7;
  --shade: #1a1b1f2e;
  --second: #b4560f; --third: #17794a; --fourth: #9a3fb5; --fifth: #0b7c91;
  --sixth: #8a6d00;
  --good: #17794a; --bad: #c03a2b; --good-tint: #e1f3e8; --bad-tint: #fbe6e3;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101115; --card: #191b20; --ink: #ecedf0; --soft: #9fa1ac;
    --line: #2b2d35; --accent: #8fa6ff; --tint: #232a47; --track: #292b32;
    --shade: #000a;
    --second: #f0a35e; --third: #56cb92; --fourth: #d394ea; --fifth: #5cc7dd;
    --sixth: #d9bd4f;
    --good: #56cb92; --bad: #ff8478; --good-tint: #17382a; --bad-tint: #46231f;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 4rem;
  -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 Inter, ui-sans-serif, system-ui, -apple-system, "Segoe UI",
    Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
header, main, footer, nav > div { max-width: 68rem; margin: 0 auto;
  padding: 0 1.5rem; }
header { padding-top: 3.5rem; }
.eyebrow { margin: 0 0 .5rem; font-size: .8rem; font-weight: 600;
  letter-spacing: .08em; text-transform: uppercase; color: var(--accent); }
h1 { margin: 0; font-size: clamp(2rem, 5vw, 2.75rem); line-height: 1.1;
  letter-spacing: -.025em; overflow-wrap: anywhere; }
.lead { margin: .75rem 0 0; color: var(--soft); }
.lead b { color: var(--ink); font-weight: 600; }
h2 { margin: 3.5rem 0 .25rem; font-size: 1.4rem; letter-spacing: -.015em;
  line-height: 1.25; }
h3 { margin: 2rem 0 .75rem; font-size: 1rem; font-weight: 600; }
h3 + .note { margin-top: -.5rem; }
h3 small { margin-left: .5rem; font-weight: 400; color: var(--soft); }
.note { margin: 0 0 1.25rem; max-width: 44rem; color: var(--soft);
  font-size: .925rem; overflow-wrap: anywhere; }
nav { position: sticky; top: 0; z-index: 2; margin-top: 2rem;
  background: var(--page); border-bottom: 1px solid var(--line); }
nav > div { display: flex; gap: 1.5rem; overflow-x: auto;
  scrollbar-width: none; }
nav a { padding: .8rem 0; color: var(--soft); font-size: .9rem;
  font-weight: 500; text-decoration: none; white-space: nowrap; }
nav a:hover, nav a:focus { color: var(--accent); }
.card { background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
.opening { display: grid; gap: 1.1rem .9rem; margin-top: 2rem;
  grid-template-columns: repeat(8, minmax(0, 1fr)); }
.opening figcaption { margin-top: .45rem; color: var(--soft);
  font-size: .78rem; line-height: 1.35; overflow-wrap: anywhere; }
.minis { display: grid; gap: .75rem; margin-top: 1.5rem;
  grid-template-columns: repeat(3, minmax(0, 1fr)); }
.mini { display: grid; grid-template-columns: 4.25rem minmax(0, 1fr);
  gap: .9rem; padding: .7rem; align-items: center; }
.mini p { margin: 0; font-size: .875rem; line-height: 1.4;
  overflow-wrap: anywhere; }
.mini .q { margin-bottom: .15rem; font-size: .8rem; }
header .cards { margin-top: 1.5rem; }
header .note { margin: .9rem 0 0; max-width: none; font-size: .825rem; }
.tiles { display: grid; gap: .75rem; margin-top: 2rem;
  grid-template-columns: repeat(auto-fit, minmax(9.75rem, 1fr)); }
.tile { display: flex; flex-direction: column; padding: .95rem 1rem .85rem; }
.tile .name { color: var(--soft); font-size: .85rem; font-weight: 500; }
.tile .value { font-size: 1.9rem; font-weight: 650; line-height: 1.35;
  letter-spacing: -.03em; }
.tile .value small { margin-left: .35rem; color: var(--soft);
  font-size: .85rem; font-weight: 400; letter-spacing: 0; }
.tile .foot { display: flex; flex-wrap: wrap; gap: 0 .75rem;
  margin-top: auto; padding-top: .35rem; color: var(--soft);
  font-size: .8rem; }
.tile .foot b { font-weight: 600; }
.tile ul { margin: .5rem 0 0; padding: 0; list-style: none; }
.tile li { display: flex; flex-wrap: wrap; gap: 0 .6rem;
  justify-content: space-between; align-items: baseline;
  padding: .12rem 0; font-size: .875rem; }
.tile li .value { margin-left: auto; font-size: 1.15rem;
  letter-spacing: -.02em; white-space: nowrap; }
.tile li .run { min-width: 0; }
.tile .name small { margin-left: .4rem; font-weight: 400; }
.half { color: var(--soft); font-size: .85em; font-weight: 400; }
.first { margin-top: 2rem; }
.over { display: block; max-width: 8rem; margin: 0 auto; overflow: hidden;
  text-overflow: ellipsis; border-bottom: 2px solid var(--series); }
.meter { position: relative; height: .4rem; margin: .2rem 0 .3rem;
  border-radius: 3px; background: var(--track); }
.meter .fill { height: 100%; border-radius: 3px; background: var(--accent); }
.meter i { position: absolute; top: -.18rem; bottom: -.18rem; width: 2px;
  margin-left: -1px; background: var(--ink); }
.meter i.target { background: var(--good); box-shadow: 0 0 0 1px var(--card); }
dl.config { display: grid; margin: 2rem 0 0; gap: 1px; overflow: hidden;
  grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr));
  padding: .5rem; }
dl.config > div { padding: .55rem .8rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: .925rem; font-weight: 500;
  overflow-wrap: anywhere; }
dl.config + dl.config { margin-top: .75rem; }
.scroll { overflow-x: auto; overscroll-behavior-x: contain;
  background: linear-gradient(to right, var(--card) 40%, transparent) 0 0,
    linear-gradient(to left, var(--card) 40%, transparent) 100% 0,
    linear-gradient(to right, var(--shade), transparent) 0 0,
    linear-gradient(to left, var(--shade), transparent) 100% 0, var(--card);
  background-size: 3rem 100%, 3rem 100%, .9rem 100%, .9rem 100%, 100%;
  background-repeat: no-repeat;
  background-attachment: local, local, scroll, scroll, local; }
.scroll:focus-visible, a:focus-visible, summary:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; }
table { width: 100%; border-collapse: separate; border-spacing: 0;
  font-size: .925rem; }
th, td { padding: .55rem 1rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child { position: sticky; left: 0; text-align: left;
  background: var(--card); }
thead th { color: var(--soft); font-size: .825rem; font-weight: 500; }
tbody th { font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
tr.group span { position: sticky; left: 1rem; }
tr.group th { padding-top: 1.1rem; font-size: .75rem; font-weight: 600;
  letter-spacing: .06em; text-transform: uppercase; color: var(--soft); }
td.latest, thead th.latest { background: var(--tint); }
td.latest { font-weight: 650; }
thead th.latest { color: var(--ink); font-weight: 600; }
td.ref { color: var(--soft); }
.dir { margin-left: .35rem; color: var(--soft); font-weight: 400; }
.good { color: var(--good); } .bad { color: var(--bad); }
.pair { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; }
.panel { padding: 1.1rem 1.25rem .75rem; }
.panel figcaption { display: flex; flex-wrap: wrap; gap: 0 1rem;
  justify-content: space-between; align-items: baseline; margin-bottom: .5rem;
  font-weight: 600; }
.panel figcaption span { color: var(--soft); font-size: .825rem;
  font-weight: 400; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font: 12.5px Inter, ui-sans-serif, system-ui,
  sans-serif; }
svg .tag { paint-order: stroke; stroke: var(--card); stroke-width: 10px; }
.s0 { --series: var(--accent); } .s1 { --series: var(--second); }
.s2 { --series: var(--third); } .s3 { --series: var(--fourth); }
.s4 { --series: var(--fifth); } .s5 { --series: var(--sixth); }
svg .grid { stroke: var(--line); }
svg .floor { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg .raw { fill: none; stroke: var(--series); opacity: .28; }
svg .smooth { fill: none; stroke: var(--series); stroke-width: 2;
  stroke-linejoin: round; stroke-linecap: round; }
svg .dot { fill: var(--series); stroke: var(--card); stroke-width: 2; }
.panel .dash { display: inline-block; width: 1.2rem; margin-right: .35rem;
  border-top: 2px dashed var(--soft); vertical-align: .25em; }
.swatch { flex: none; width: .7rem; height: .7rem; border-radius: 3px;
  background: var(--series); }
.run { display: inline-flex; align-items: center; gap: .45rem; }
.panel .run { margin-right: 1rem; }
.panel .run span { color: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.25rem; }
.run span { overflow-wrap: anywhere; }
h1.runs { font-size: clamp(1.5rem, 4vw, 2.1rem); }
h1 .run { display: flex; gap: .7rem; margin-top: .5rem; }
h1 .swatch { width: 1rem; height: 1rem; }
h1 small { color: var(--soft); font-size: 1rem; font-weight: 400;
  letter-spacing: 0; white-space: nowrap; }
.facets { display: grid; gap: 1.25rem; margin-top: 1rem;
  padding: 1.1rem 1.25rem; grid-template-columns: repeat(3, 1fr); }
.facets figcaption { margin-bottom: .35rem; font-size: .875rem;
  font-weight: 500; }
.bars { padding: 1.1rem 1.25rem; }
.bar { display: grid; grid-template-columns: 9.5rem 1fr 3.5rem; gap: 1rem;
  align-items: center; padding: .4rem 0; font-size: .925rem; }
.bar .value { text-align: right; font-weight: 600; }
.bar .track { position: relative; height: .8rem; border-radius: 3px;
  background: var(--track); }
.bar .fill { height: 100%; border-radius: 3px; background: var(--accent);
  opacity: .72; }
.bar .floor { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px;
  margin-left: -1px; background: var(--ink); }
.bar.overall { margin-bottom: .4rem; padding-bottom: .9rem; font-weight: 600;
  border-bottom: 1px solid var(--line); }
.bar.overall .fill { opacity: 1; }
.key { display: flex; align-items: center; gap: .5rem; margin: .6rem 0 0;
  color: var(--soft); font-size: .825rem; }
.key i { width: 2px; height: 1rem; background: var(--ink); }
.gallery { display: grid; gap: 1.25rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); }
.fit { width: fit-content; max-width: 100%; }
.grid td { padding: .5rem; }
.grid td > * { width: clamp(5rem, calc(50rem / var(--columns) - 1rem), 8rem); }
.grid tbody th { min-width: 11rem; white-space: normal;
  overflow-wrap: break-word; }
.grid thead th + th { text-align: center; }
.grid .none, .pairs .none { display: grid; place-items: center;
  aspect-ratio: 1; color: var(--soft); }
.pairs { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
.pairs figure { padding: .9rem; }
.pairs .two { display: grid; gap: .75rem;
  grid-template-columns: repeat(2, minmax(0, 1fr)); }
.pairs small { display: block; margin-top: .35rem; padding-top: .3rem;
  border-top: 2px solid var(--series); color: var(--soft);
  font-size: .75rem; line-height: 1.35; overflow-wrap: anywhere; }
.pairs figcaption { margin-top: .6rem; font-size: .875rem; line-height: 1.4;
  overflow-wrap: anywhere; }
.frame { position: relative; }
img { display: block; width: 100%; height: auto; border-radius: 8px;
  background: var(--track); box-shadow: 0 0 0 1px var(--line); }
.gallery.wide { grid-template-columns: repeat(auto-fill,
  minmax(12rem, 1fr)); }
.truly { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; }
.gallery small { display: block; margin-top: .2rem; color: var(--bad);
  font-size: .78rem; line-height: 1.35; }
.gallery figcaption { margin-top: .5rem; font-size: .85rem; line-height: 1.4;
  overflow-wrap: anywhere; }
.mark { display: inline-grid; place-items: center; flex: none; width: 1.3rem;
  height: 1.3rem; border-radius: 50%; font-size: .78rem; font-weight: 700;
  line-height: 1; }
.mark.yes { background: var(--good-tint); color: var(--good); }
.mark.no { background: var(--bad-tint); color: var(--bad); }
.frame .mark { position: absolute; top: -.4rem; right: -.4rem;
  box-shadow: 0 0 0 2px var(--page); }
.card .frame .mark { box-shadow: 0 0 0 2px var(--card); }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
.seen { display: grid; grid-template-columns: 7.5rem minmax(0, 1fr);
  gap: 1.25rem; padding: 1.1rem; }
.seen p, .edit p { margin: 0; overflow-wrap: anywhere; }
.said { display: flex; gap: .6rem; justify-content: space-between; }
.said > span:first-child { font-weight: 550; }
.truth, .score, .q { color: var(--soft); font-size: .875rem; }
.truth ul { margin: 0; padding-left: 1rem; overflow-wrap: anywhere; }
.score b { color: var(--ink); font-weight: 600; }
.config td { white-space: normal; overflow-wrap: anywhere; }
.delta { background: var(--tint); font-weight: 650; }
.delta.good { color: var(--good); } .delta.bad { color: var(--bad); }
.edit { padding: 1.1rem; }
.edit .row { display: grid; grid-template-columns: 1fr auto 1fr 1fr;
  gap: .75rem; align-items: center; margin-top: .9rem; }
.edit .row.two { grid-template-columns: 1fr auto 1fr; max-width: 75%; }
.edit .arrow { color: var(--soft); font-size: 1.2rem;
  padding-bottom: 1.6rem; }
.edit figcaption { margin-top: .35rem; color: var(--soft);
  font-size: .8rem; text-align: center; }
.rules { margin: 0 0 1.25rem; font-size: .925rem; }
.rules summary { width: fit-content; cursor: pointer; color: var(--accent);
  font-weight: 500; }
.rules ul { margin: .5rem 0 0; padding-left: 1.1rem; color: var(--soft); }
.rules b { color: var(--ink); font-weight: 600; }
.start { margin-top: .75rem; padding: 1rem 1.25rem; }
.start p { margin: 0; color: var(--soft); font-size: .85rem; }
.start pre { margin: .4rem 0 .5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .85rem/1.5 var(--mono); }
.start ul { display: flex; flex-wrap: wrap; gap: .1rem 1.5rem; margin: 0;
  padding: 0; list-style: none; font-size: .85rem; color: var(--soft); }
.start b { margin-right: .3rem; font-weight: 500; color: var(--ink); }
.notes { margin: 1rem 0 0; padding-left: 1.1rem; color: var(--soft);
  font-size: .875rem; overflow-wrap: anywhere; }
footer { margin-top: 4rem; padding-top: 1.25rem; padding-bottom: 3rem;
  color: var(--soft); font-size: .825rem; }
footer p { margin: .35rem 0; overflow-wrap: anywhere; }
footer a { color: inherit; }
.attribution { max-width: 48rem; margin-bottom: 1.5rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }
.attribution h3 { margin: .75rem 0 .25rem; font-size: .875rem;
  color: var(--ink); }
.attribution ul { margin: .35rem 0; padding-left: 1.1rem; }
@media (max-width: 60rem) {
  .minis { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .opening { grid-template-columns: repeat(6, minmax(0, 1fr)); }
}
@media (max-width: 34rem) {
  header, main, footer, nav > div { padding-left: 1rem; padding-right: 1rem; }
  header { padding-top: 2rem; }
  h2 { margin-top: 2.75rem; }
  .opening { grid-template-columns: repeat(4, minmax(0, 1fr));
    gap: .8rem .6rem; margin-top: 1.5rem; }
  .opening figcaption { font-size: .7rem; line-height: 1.3; }
  .opening .mark { width: 1.05rem; height: 1.05rem; font-size: .65rem; }
  .minis { grid-template-columns: minmax(0, 1fr); gap: .6rem; }
  .mini { grid-template-columns: 3.5rem minmax(0, 1fr); padding: .55rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr));
    gap: .6rem; margin-top: 1.5rem; }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .tile { padding: .75rem .85rem; }
  .tile .value { font-size: 1.6rem; }
  th, td { padding: .5rem .7rem; }
  th[scope="row"] { min-width: 7.5rem; max-width: 9.5rem;
    white-space: normal; }
  .bar { grid-template-columns: 6.5rem 1fr 2.75rem; gap: .75rem; }
  svg text { font-size: 18px; }
  .facets { grid-template-columns: 1fr 1fr; padding: .9rem; }
  .facets svg text { font-size: 20px; }
  .grid td { padding: .35rem; }
  .grid td > * { width: 5rem; }
  .grid tbody th { min-width: 7rem; font-size: .8rem; }
  .versus { font-size: .85rem; }
  .versus th, .versus td { padding: .5rem .4rem; }
  .versus th:first-child { padding-left: .7rem; }
  .pairs { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .75rem; }
  .pairs figure { padding: .6rem; }
  .pairs .two { gap: .5rem; }
  .gallery, .gallery.wide { grid-template-columns: 1fr 1fr;
    gap: 1rem .75rem; }
  .gallery figcaption { font-size: .78rem; }
  .seen { grid-template-columns: 5.5rem minmax(0, 1fr); gap: 1rem; }
  dl.config { grid-template-columns: 1fr 1fr; }
  .edit .row { gap: .4rem; }
}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
