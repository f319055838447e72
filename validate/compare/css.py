"""What the page of a comparison has beside the style sheet of all pages: colours of series, light and dark."""

from __future__ import annotations

SERIES = 8  # colours; from there on lines are dashed, and dots hollow

# Okabe and Ito (2008), which are told apart without red or green; lighter on dark paper.
_LIGHT = ("#0072b2", "#c05a00", "#00805c", "#a8508a", "#7a6a00", "#3a8fc4", "#5b6675", "#8a3b1c")
_DARK = ("#6cb2f5", "#f0a35c", "#56d3a8", "#e39ac9", "#e2d15a", "#9fd3f7", "#aab4c0", "#e0906c")

LIGHT_SERIES = _LIGHT  # for figures on white paper


def _variables(colours: tuple[str, ...]) -> str:
    return " ".join(f"--s{i}: {colour};" for i, colour in enumerate(colours))


_CLASSES = "\n".join(
    f".s{i} {{ stroke: var(--s{i}); }} .key.s{i} {{ background: var(--s{i}); }} circle.s{i} {{ fill: var(--s{i}); }}\n"
    f".key.s{i}.dashed {{ background: none; border: 2px solid var(--s{i}); }}"
    for i in range(SERIES)
)

STYLE = f"""
:root {{ {_variables(_LIGHT)} --rest: #b3bcc7; --pipeline: #1668b8; }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_DARK)} --rest: #566170; --pipeline: #6cb2f5; }} }}
polyline {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; }} polyline.dashed {{ stroke-dasharray: 6 4; }}
line.whisker {{ stroke-width: 2; stroke-opacity: .8; }}
circle.single {{ fill: var(--measured); fill-opacity: .35; }}
{_CLASSES}
circle {{ stroke-width: 0; }} circle.predicted {{ stroke-width: 2; }}
circle.dashed {{ fill: var(--paper); fill-opacity: 1; stroke-width: 2; }}
rect.rest {{ fill: var(--rest); }} rect.pipeline {{ fill: var(--pipeline); }}
.key.rest, .key.pipeline {{ border-radius: 2px; background: var(--rest); }}
.key.pipeline {{ background: var(--pipeline); }}
ul.keys {{ list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; padding: 0; margin: .3rem 0; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; margin: .6rem 0; }}
nav a {{ color: var(--measured); }}
.skip {{ position: absolute; left: -999px; }} .skip:focus {{ position: static; }}
"""
