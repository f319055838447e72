"""The style sheet of a report's page: light and dark, as the reader's system is; blue measured, orange predicted."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --rule: #dfe4ea; --paper: #ffffff; --card: #f5f7f9;
  --measured: #1668b8; --predicted: #d0640a; --bad: #b3261e; --good: #1c7a3f; --open: #7a6a1c;
  --forward: #1668b8; --backward: #7a4fb5; --optimizer: #2f8f83; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --rule: #333c48; --paper: #14181e;
  --card: #1d232b; --measured: #6cb2f5; --predicted: #f0a35c; --bad: #f2857c; --good: #6fce92; --open: #d9c46a;
  --forward: #6cb2f5; --backward: #b79bea; --optimizer: #6ccabd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 2.2rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; }
p, li { max-width: 46rem; } .soft, figcaption { color: var(--soft); }
.verdict { background: var(--card); border-left: 5px solid var(--open); border-radius: 4px 8px 8px 4px;
  padding: .7rem 1rem; margin: 1.4rem 0; } .verdict p { margin: 0; font-size: 1.05rem; }
.verdict p, .verdict li { max-width: none; }
.verdict ul { margin: .5rem 0 0; padding-left: 1.2rem; } .verdict b span { display: inline-block; width: 1.2em; }
.verdict.good { border-color: var(--good); } .verdict.good b span, li.good::marker { color: var(--good); }
.verdict.poor { border-color: var(--bad); } .verdict.poor b span, li.poor::marker { color: var(--bad); }
li.good::marker { content: "✓ "; } li.poor::marker { content: "✗ "; } li.open::marker { content: "? "; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 165px), 1fr)); gap: .7rem;
  margin: 1.4rem 0; }
.tile { background: var(--card); border-radius: 8px; padding: .8rem 1rem; min-width: 0; }
.tile b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { display: block; color: var(--soft); font-size: .85rem; line-height: 1.35; hyphens: auto; }
figure { margin: 1rem 0; } figure svg { display: block; width: 100%; height: auto; font-size: 12px; }
.narrow { display: none; }
svg text { fill: var(--ink); } svg text.axis { fill: var(--soft); }
line { stroke-linecap: round; } line.grid { stroke: var(--rule); } line.zero { stroke: var(--soft); }
line.interval { stroke: var(--predicted); stroke-opacity: .3; stroke-width: 9; }
line.band { stroke: var(--predicted); stroke-opacity: .2; stroke-width: 18; stroke-linecap: butt; }
line.deviation { stroke: var(--measured); stroke-width: 2; } line.link { stroke: var(--soft); stroke-dasharray: 2 3; }
circle.predicted { fill: none; pointer-events: all; stroke: var(--predicted); stroke-width: 2; }
circle.measured { fill: var(--measured); fill-opacity: .85; }
rect.forward { fill: var(--forward); } rect.backward { fill: var(--backward); }
rect.optimizer { fill: var(--optimizer); } rect.predicted { fill-opacity: .5; }
.key { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .3em; }
.key.m { background: var(--measured); } .key.p { border: 2px solid var(--predicted); }
.key.forward { background: var(--forward); } .key.backward { background: var(--backward); }
.key.optimizer { background: var(--optimizer); } .key.forward, .key.backward, .key.optimizer { border-radius: 2px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td { white-space: nowrap; }
th:first-child, td:first-child, th.text, td.text { text-align: left; white-space: normal; }
td:first-child { min-width: 7rem; max-width: 20rem; overflow-wrap: anywhere; }
td.text { min-width: 12rem; max-width: 30rem; overflow-wrap: anywhere; } .bad { color: var(--bad); }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 8px; overflow-x: auto; font-size: .82rem; }
summary { cursor: pointer; }
:focus-visible { outline: 2px solid var(--measured); outline-offset: 2px; }
@media (max-width: 640px) { body { padding: 1.2rem 1.2rem 3rem; } h1 { font-size: 1.3rem; }
  .wide { display: none; } .narrow { display: block; } .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding: .28rem .45rem; } td:first-child { max-width: 9rem; position: sticky; left: 0;
  background: var(--paper); } }
@media (max-width: 300px) { .tiles { grid-template-columns: minmax(0, 1fr); } }
"""
