"""Legends of a map: its colours, also by the user's own file, layer styles for QGIS, and a card in JSON of what the map holds."""

import json
import re
from pathlib import Path
from xml.sax.saxutils import quoteattr

from eoseg import files, plots
from eoseg.errors import SetupError, listing

CARD = 1  # version of the card's layout
COLOUR = re.compile(r"#[0-9a-fA-F]{6}|-?\d{1,9}(?:[\s,]+-?\d{1,9}){2}")
NAMED = re.compile(rf"(.*?\S)[\s,:=]+({COLOUR.pattern})")  # name or number, colour
TABLED = re.compile(rf"(-?\d+)(?:\.0*)?[\s,:=]+({COLOUR.pattern})(?:[\s,]+\d+(?:[\s,]+(.*))?)?")  # GDAL's and QGIS's colour tables: value, colour, alpha, label
ASIDE = re.compile(r"(?i)(?:#|interpolation:|nv\s).*|")  # comments, and what those tables hold besides classes
FORM = "write a line per class, such as `water #3378c8` or `2 51 120 200`"
RAMP = {0: "#440154", 0.25: "#3b528b", 0.5: "#21918c", 0.75: "#5ec962", 1: "#fde725"}  # viridis

STYLE = """<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22.0" styleCategories="Symbology">
  <pipe>
    <rasterrenderer {attributes} band="1" opacity="1" alphaBand="-1" nodataColor="">
      <rasterTransparency/>
{body}
    </rasterrenderer>
  </pipe>
  <blendMode>0</blendMode>
</qgis>
"""


def palette_of(names, file=None, numbers=None, say=print):
    """One (r, g, b) per class, 0 to 255: from `file` where it names the class, else the default that no other class has.

    Args:
        names: of the classes. numbers: their values in the map; from 0 on unless given.
        file: a line per class, its name or number and then `#rrggbb` or three numbers to 255; a colour table as GDAL and QGIS write it
            (`value r g b alpha label`; where the label is a class of the map, that is the one meant); or .json {name or number: "#rrggbb"}.
        say: takes a note of classes that the map does not have.
    Raises:
        SetupError: the file cannot be read, has no colours, or a line that is unclear.
    """
    if file is None:
        return plots.colours(names)
    numbers = range(len(names)) if numbers is None else numbers
    place = {key: i for keys in (map(str, numbers), map(str.lower, names), names) for i, key in enumerate(keys)}  # a name counts before a number
    given, strange = {}, []
    for where, words, colour in entries_of(file):
        at = next((place[key] for word in words for key in (word, word.lower()) if key in place), None)
        if at is None:
            strange.append(words[0])
        elif at in given:
            raise SetupError(f"--palette {file}: {where} gives class {names[at]} a colour again, after {given[at][0]}; keep one of them.")
        else:
            given[at] = where, colour
    if strange:
        say(f"note: --palette {file}: the map has no class {listing(strange)}")
    chosen = {i: colour for i, (_, colour) in given.items()}
    left = [i for i in range(len(names)) if i not in chosen]
    chosen |= zip(left, plots.colours([names[i] for i in left], taken=chosen.values()))
    return [chosen[i] for i in range(len(names))]


def entries_of(file):
    """What a palette file says: [(where, words that may name the class, (r, g, b))]."""
    if Path(file).exists() and not Path(file).is_file():  # a pipe would never end
        raise SetupError(f"--palette {file}: is not a file; check the path.")
    try:
        text = files.read_text(file)
    except OSError as error:
        raise SetupError(f"--palette {file}: {error.strerror}; check the path.") from None
    except ValueError:
        raise SetupError(f"--palette {file}: is not text in UTF-8; save it as such.") from None
    found = list(from_json(file, text) if Path(file).suffix.lower() == ".json" else from_lines(file, text))
    if not found:
        raise SetupError(f"--palette {file}: gives no colours; {FORM}.")
    return found


def from_lines(file, text):
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"\s#\s.*", "", line).strip()
        if ASIDE.fullmatch(line):
            continue
        tabled, named = TABLED.fullmatch(line), NAMED.fullmatch(line)
        if not tabled and not named:
            raise SetupError(f"--palette {file}: line {number} ({line[:80]}) is not a class and its colour; {FORM}.")
        words = [word for word in (tabled[3], tabled[1]) if word] if tabled else [named[1].strip("\"'")]
        yield f"line {number}", words, rgb_of(file, f"line {number}", (tabled or named)[2])


def from_json(file, text):
    try:
        pairs = json.loads(text or "{}", object_pairs_hook=tuple)  # a dict would hide a class that is given twice
    except (ValueError, RecursionError) as error:
        raise SetupError(f"--palette {file}: is not readable as JSON ({error}); write {{\"water\": \"#3378c8\"}}.") from None
    if not isinstance(pairs, tuple):
        raise SetupError(f"--palette {file}: is not a list of names with colours; write {{\"water\": \"#3378c8\"}}.")
    for key, value in pairs:
        colour = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        if not COLOUR.fullmatch(colour):
            raise SetupError(f"--palette {file}: \"{key}\" has no colour ({colour[:80]}); write \"#rrggbb\".")
        yield f'"{key}"', [key], rgb_of(file, f'"{key}"', colour)


def rgb_of(file, where, colour):
    """(r, g, b) of a text that COLOUR matches."""
    rgb = tuple(bytes.fromhex(colour[1:]) if colour[0] == "#" else map(int, re.findall(r"-?\d+", colour)))
    if not all(0 <= part <= 255 for part in rgb):
        raise SetupError(f"--palette {file}: {where} has the colour {colour}; its parts must lie between 0 and 255.")
    return rgb


def hexed(colour):
    """(r, g, b) as `#rrggbb`."""
    return "#" + bytes(colour).hex()


def write_qml(path, names, palette, numbers):
    """Write a QGIS style for a map of classes; `map.qml` is found by itself beside `map.tif`.

    Args:
        names, palette, numbers: of each class its name, (r, g, b) and value in the map.
    """
    entries = "\n".join(f'        <paletteEntry value="{number}" color="{hexed(colour)}" alpha="255" label={quoteattr(name)}/>'
                        for name, colour, number in zip(names, palette, numbers))
    files.write_text(path, STYLE.format(attributes='type="paletted"', body=f"      <colorPalette>\n{entries}\n      </colorPalette>"))


def write_qml_ramp(path, description):
    """Write a QGIS style for the first band of a raster from 0 (dark) to 1 (bright), such as confidence; `description` stands in the legend."""
    items = "\n".join(f'          <item value="{value}" color="{colour}" alpha="255" label={quoteattr(f"{description} {value}")}/>' for value, colour in RAMP.items())
    ends = f'minimumLabel={quoteattr(f"{description} 0")} maximumLabel={quoteattr(f"{description} 1")}'
    body = f"""      <rastershader>
        <colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" minimumValue="0" maximumValue="1">
{items}
          <rampLegendSettings {ends} prefix="" suffix="" direction="0" orientation="2" useContinuousLegend="1"/>
        </colorrampshader>
      </rastershader>"""
    files.write_text(path, STYLE.format(attributes='type="singlebandpseudocolor" classificationMin="0" classificationMax="1"', body=body))


def is_card(path):
    """Is there a card at `path` that `write_card` wrote?"""
    try:
        return {"format", "model", "settings"} <= files.read_json(path).keys()
    except (SetupError, OSError, AttributeError):
        return False


def write_card(path, summary, about):
    """Write as JSON what a map holds and how it was made; the same map gives the same bytes.

    Args:
        summary: what `mapfile.MapFile.summary` returns.
        about: dict of
            numbers, palette: of each class of the summary, its value in the map and its (r, g, b);
            models: a dict path, name, sha256 for each network, the path as the user typed it;
            settings: dict of what decided the pixels;
            scene: dict name, size [rows, columns], crs (text or None), pixel_size [across, down] in the units of the CRS.
    """
    parts = zip(summary["classes"].items(), about["numbers"], about["palette"])
    classes = {name: {"number": int(number), **counts, "colour": hexed(colour)} for (name, counts), number, colour in parts}
    files.write_json(path, {"format": CARD, "scene": about["scene"], "model": about["models"], "settings": about["settings"], **summary, "classes": classes})
