"""The style sheet of a report's page: light and dark, as the reader's system is; blue measured, orange predicted."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --rule: #dfe4ea; --paper: #ffffff; --card: #f5f7f9;
  --measured: #1668b8; --predicted: #d0640a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --rule: #333c48; --paper: #14181e;
  --card: #1d232b; --measured: #6cb2f5; --predicted: #f0a35c; --bad: #f2857c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 2.2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; }
p, li { max-width: 46rem; } .soft, figcaption { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7rem; margin: 1.4rem 0; }
.tile { background: var(--card); border-radius: 8px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; font-size: 12px; }
svg text { fill: var(--ink); } svg text.axis { fill: var(--soft); }
line { stroke-linecap: round; } line.grid { stroke: var(--rule); } line.zero { stroke: var(--soft); }
line.interval { stroke: var(--predicted); stroke-opacity: .3; stroke-width: 9; }
line.band { stroke: var(--predicted); stroke-opacity: .2; stroke-width: 18; stroke-linecap: butt; }
line.deviation { stroke: var(--measured); stroke-width: 2; } line.link { stroke: var(--soft); stroke-dasharray: 2 3; }
circle.predicted { fill: none; pointer-events: all; stroke: var(--predicted); stroke-width: 2; }
circle.measured { fill: var(--measured); fill-opacity: .85; }
.key { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .3em; }
.key.m { background: var(--measured); } .key.p { border: 2px solid var(--predicted); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child, td.text { text-align: left; }
td.text { max-width: 30rem; } .bad { color: var(--bad); }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 8px; overflow-x: auto; font-size: .82rem; }
summary { cursor: pointer; }
"""
