"""Plots as SVG text, without any library: horizontal stacked bars, and panels of lines. Each function returns a document.

Every plot has a white background of its own, so that it reads the same in light and dark viewers. Colours are those of
Okabe and Ito, which stay apart for colour-blind readers; lines differ by marker and dash as well.
"""
import math
from xml.sax.saxutils import escape, quoteattr

WIDTH = 720
INK, FAINT, GRID = "#1a1a1a", "#555555", "#e3e3e3"
BLUE, SKY, ORANGE, GREEN, RED, PINK = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
GREY, LIGHT = "#8c8c8c", "#cfcfcf"
MARGIN = 24  # between the axes and the first and last points, for their labels
CHARACTER = 0.6  # of the font's size: an upper estimate of a character's mean width


def text_width(text, size):
    return len(text) * size * CHARACTER


class Svg:
    def __init__(self, width, height, title, description):
        self.width, self.height = width, height
        self.parts = ["<title>%s</title>" % escape(title), "<desc>%s</desc>" % escape(description)]
        self.rect(0, 0, width, height, "#ffffff")
        self.text(16, 26, title, size=15, weight="bold")

    def rect(self, x, y, width, height, fill, edge=None):
        more = ' stroke="%s" stroke-width="0.8"' % edge if edge else ""
        self.parts.append('<rect x="%.1f" y="%.1f" width="%.2f" height="%.1f" fill="%s"%s/>' % (x, y, width, height, fill, more))

    def line(self, x1, y1, x2, y2, colour=INK, width=1.0, dash=None):
        more = ' stroke-dasharray="%s"' % dash if dash else ""
        self.parts.append('<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"%s/>' % (
            x1, y1, x2, y2, colour, width, more))

    def path(self, points, colour, dash=None):
        more = ' stroke-dasharray="%s"' % dash if dash else ""
        self.parts.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="2.2" stroke-linejoin="round"%s/>' % (
            " ".join("%.1f,%.1f" % p for p in points), colour, more))

    def marker(self, x, y, shape, colour):
        if shape == "square":
            self.rect(x - 4, y - 4, 8, 8, colour, "#ffffff")
        elif shape == "triangle":
            self.parts.append('<polygon points="%.1f,%.1f %.1f,%.1f %.1f,%.1f" fill="%s" stroke="#ffffff" stroke-width="0.8"/>' % (
                x, y - 5.5, x - 5, y + 4, x + 5, y + 4, colour))
        else:
            self.parts.append('<circle cx="%.1f" cy="%.1f" r="4.4" fill="%s" stroke="#ffffff" stroke-width="0.8"/>' % (x, y, colour))

    def text(self, x, y, text, size=12, colour=INK, anchor="start", weight="normal", halo=False, turn=False):
        more = ' stroke="#ffffff" stroke-width="3" stroke-linejoin="round" paint-order="stroke"' if halo else ""
        if turn:
            more += ' transform="rotate(-90 %.1f %.1f)"' % (x, y)
        self.parts.append('<text x="%.1f" y="%.1f" font-size="%g" fill="%s" text-anchor="%s" font-weight="%s"%s>%s</text>' % (
            x, y, size, colour, anchor, weight, more, escape(text)))

    def document(self):
        return ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" '
                'font-family=%s>\n%s\n</svg>\n' % (self.width, self.height, self.width, self.height,
                                                   quoteattr("DejaVu Sans, Verdana, Arial, sans-serif"), "\n".join(self.parts)))


def number(value):
    """As short as a label may be: three digits or so."""
    if value >= 100:
        return "{:,.0f}".format(value)
    return ("%.1f" if value >= 1 else "%.2f") % value


def whole(value):
    """Shorter still, where labels stand close: milliseconds."""
    return "{:,.0f}".format(value) if value >= 10 else number(value)


def nice_ticks(top, count=7):
    """0 and round numbers up to `top` or just above it."""
    if top <= 0:
        return [0, 1]
    raw = top / count
    step = 10 ** math.floor(math.log10(raw))
    step *= next(f for f in (1, 2, 2.5, 5, 10) if f * step >= raw * 0.999)
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def log_ticks(low, high):
    """1, 2, 5, 10, … from the last one under `low` to the first one above `high`."""
    ticks = [f * 10.0 ** e for e in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2) for f in (1, 2, 5)]
    first = max(t for t in ticks if t <= low)
    last = min(t for t in ticks if t >= high)
    return [t for t in ticks if first <= t <= last]


def plain(value):
    return "{:,.10g}".format(value)


def draw_legend(svg, x, y, entries, right):
    """entries: (name, colour, marker or None for a box, dash). Returns the y behind its last row."""
    left = x
    for name, colour, marker, dash in entries:
        width = 26 + text_width(name, 11.5) + 14
        if x + width > right and x > left:
            x, y = left, y + 20
        if marker:
            svg.line(x, y - 4, x + 20, y - 4, colour, 2.2, dash)
            svg.marker(x + 10, y - 4, marker, colour)
        else:
            svg.rect(x + 4, y - 10, 13, 12, colour, FAINT)
        svg.text(x + 25, y, name, size=11.5)
        x += width
    return y + 20


# ------------------------------------------------------------------ stacked bars

def stacked_bars(title, description, unit, names, colours, groups):
    """groups: (caption, bars); a bar: (label, values in the order of names, what stands behind it)."""
    left, right, thick, pitch = 196, 124, 24, 34
    bars = [bar for _, some in groups for bar in some]
    ticks = nice_ticks(max(sum(values) for _, values, _ in bars))
    height = 118 + 20 * 2 + 30 * len(groups) + pitch * len(bars)
    svg = Svg(WIDTH, height, title, description)
    used = [i for i in range(len(names)) if any(values[i] > 0 for _, values, _ in bars)]
    top = draw_legend(svg, 16, 52, [(names[i], colours[i], None, None) for i in used], WIDTH - 16) + 2
    bottom = top + 30 * len(groups) + pitch * len(bars)
    scale = (WIDTH - left - right) / ticks[-1]
    for t in ticks:
        svg.line(left + t * scale, top, left + t * scale, bottom, GRID)
        svg.line(left + t * scale, bottom, left + t * scale, bottom + 5)
        svg.text(left + t * scale, bottom + 19, plain(t), size=11.5, anchor="middle")
    svg.text((left + WIDTH - right) / 2, bottom + 38, unit, size=12, anchor="middle")
    y = top
    for caption, some in groups:
        svg.text(16, y + 20, caption, size=11.5, colour=FAINT, weight="bold", halo=True)
        y += 30
        for label, values, behind in some:
            svg.text(left - 10, y + 17, label, size=12, anchor="end")
            draw_bar(svg, left, y, thick, scale, values, colours)
            svg.text(left + sum(values) * scale + 7, y + 17, behind, size=11.5, weight="bold", halo=True)
            y += pitch
    svg.line(left, top, left, bottom)
    svg.line(left, bottom, WIDTH - right, bottom)
    svg.height = bottom + 50
    svg.parts[2] = svg.parts[2].replace('height="%.1f"' % height, 'height="%.1f"' % svg.height)
    return svg.document()


def draw_bar(svg, x, y, thick, scale, values, colours):
    for value, colour in zip(values, colours):
        width = value * scale
        if value > 0:
            svg.rect(x, y, max(width, 0.5), thick, colour, "#ffffff" if width > 8 else None)
        inside = whole(value)
        if width > text_width(inside, 11) + 6:
            dark = colour in (BLUE, GREEN, FAINT)
            svg.text(x + width / 2, y + 16.5, inside, size=11, anchor="middle", colour="#ffffff" if dark else INK)
        x += width


# ------------------------------------------------------------------ lines

class Scale:
    def __init__(self, ticks, begin, end, logarithmic):
        self.ticks, self.begin, self.end, self.logarithmic = ticks, begin, end, logarithmic

    def __call__(self, value):
        low, high = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (self.begin + self.end) / 2 if high == low else self.begin + (value - low) / (high - low) * (self.end - self.begin)


class Panel:
    """What one pair of axes shows. series: (name, colour, marker, dash, [(x, y), …]); rules: (name, colour, y)."""

    def __init__(self, heading, x_name, y_name, series, rules=(), x_ticks=None, log_x=False, log_y=False, label=whole):
        self.heading, self.x_name, self.y_name, self.series, self.rules = heading, x_name, y_name, series, rules
        self.x_ticks, self.log_x, self.log_y, self.label = x_ticks, log_x, log_y, label

    def values(self):
        return [y for s in self.series for _, y in s[4]] + [y for _, _, y in self.rules]

    def y_ticks(self):
        values = self.values()
        return log_ticks(min(values) * 0.88, max(values) * 1.12) if self.log_y else nice_ticks(max(values) * 1.06)


def draw_axes(svg, panel, x, y):
    for t in y.ticks:
        svg.line(x.begin - MARGIN, y(t), x.end + MARGIN, y(t), GRID)
        svg.line(x.begin - MARGIN - 5, y(t), x.begin - MARGIN, y(t))
        svg.text(x.begin - MARGIN - 9, y(t) + 4, plain(t), size=11.5, anchor="end")
    for t in x.ticks:
        svg.line(x(t), y.begin, x(t), y.begin + 5)
        svg.text(x(t), y.begin + 19, plain(t), size=11.5, anchor="middle")
    svg.line(x.begin - MARGIN, y.begin, x.end + MARGIN, y.begin)
    svg.line(x.begin - MARGIN, y.begin, x.begin - MARGIN, y.end)
    svg.text((x.begin + x.end) / 2, y.begin + 38, panel.x_name, anchor="middle")
    svg.text(x.begin - MARGIN - 50, (y.begin + y.end) / 2, panel.y_name, anchor="middle", turn=True)
    if panel.heading:
        svg.text(x.begin - MARGIN, y.end - 12, panel.heading, size=12, weight="bold")


def draw_labels(svg, panel, x, y):
    """Each point's value: above the highest point over an x, under the lowest one when there are several; off a rising line."""
    for place in sorted({p for s in panel.series for p, _ in s[4]}):
        there = sorted((value, s[1]) for s in panel.series for p, value in s[4] if p == place)
        for i, (value, colour) in enumerate(there):
            under = i == 0 and len(there) > 1
            down = min(y(value) + 18, y.begin - 4) if under else y(value) - 9
            aside = 18 if down < y(value) + 18 and under else 7  # where the axis leaves no room under the point
            svg.text(x(place) + (aside if under else -7), down, panel.label(value), size=11, colour=colour, anchor="middle",
                     weight="bold", halo=True)


def draw_names(svg, panel, x, y):
    """The lines' names behind their last points, pushed apart where they would touch."""
    last = 1e9
    for name, colour, _, _, points in sorted(panel.series, key=lambda s: y(s[4][-1][1]), reverse=True):
        at = min(y(points[-1][1]) + 4, last - 15)
        svg.text(x(points[-1][0]) + MARGIN + 4, at, name, size=11.5, colour=colour, weight="bold", halo=True)
        last = at


def draw_panel(svg, panel, box, names):
    left, top, right, bottom = box
    places = panel.x_ticks or sorted({p for s in panel.series for p, _ in s[4]})
    x = Scale(places, left + MARGIN, right - MARGIN, panel.log_x)
    y = Scale(panel.y_ticks(), bottom, top, panel.log_y)
    draw_axes(svg, panel, x, y)
    for name, colour, value in panel.rules:
        svg.line(x.begin - MARGIN, y(value), x.end + MARGIN, y(value), colour, 1.6, "6 4")
        svg.text(x.begin - MARGIN + 6, y(value) - 6, name, size=11.5, colour=colour, weight="bold", halo=True)
    for _, colour, marker, dash, points in panel.series:
        svg.path([(x(a), y(b)) for a, b in points], colour, dash)
        for a, b in points:
            svg.marker(x(a), y(b), marker, colour)
    draw_labels(svg, panel, x, y)
    if names:
        draw_names(svg, panel, x, y)


def panels(title, description, some, names=0):
    """Panels beside each other. names: the room, right of the lines, for their names there; 0: the legend alone."""
    height = 400
    svg = Svg(WIDTH, height, title, description)
    entries = []
    for panel in some:
        entries += [s[:4] for s in panel.series if s[:4] not in entries]
    behind = draw_legend(svg, 16, 52, entries, WIDTH - 16)
    top = behind + (26 if any(p.heading for p in some) else 10)
    room = (WIDTH - 16) / len(some)
    for i, panel in enumerate(some):
        left = 16 + i * room + 74
        draw_panel(svg, panel, (left, top, 16 + (i + 1) * room - 14 - names, height - 56), names)
    return svg.document()
