"""The text of the library avoids phrases that a native technical writer would not use."""

import json
import pathlib
import re

import pytest

pytestmark = pytest.mark.whole  # short, so all of it is in `make test`

ROOT = pathlib.Path(__file__).parent.parent

# Phrases in lower case, and better ones; a space matches any white space.
PHRASES = {
    r"\banew\b": "again",
    r"\bfor ever\b": "indefinitely",
    r"\belse than\b": "other than",
    r"\b(?:is|are|was|were) meant\b": "matches; is selected",
    r"\b(?:arrays?|scalars?|matrix|matrices|states?) of (?:jax|scipy|numpy|optax)\b": "a JAX array",
    r"\bvariables? of nnx\b": "NNX variables",
    r"\btold early\b": "reported early",
    r"\b(?:is|are|was|be|been) told\b": "is reported; receives",
    r"\b(?:cannot|do not|does not) tell\b": "cannot be inferred",
    r"\bat hand\b": "available; installed",
    r"\bmany an? [a-z]": "several",
    r"\b(?:and|or) (?:the|its|their) like\b": "and similar",
    r"\b(?:come|comes|came|be|is|are) (?:to|at) rest\b": "converge",
    r"\b(?:in|of) (?:our|its own|their own) words\b": "(delete)",
    r"\b(?:has|have) been found right\b": "passed a self-test",
    r"\b(?:goes|go|going) on\b": "continues",
    r"\basked for\b": "requested",
    r"\bfirst asked\b": "at first use",
    r"(?<!there) is no (?!(?:longer|more|less|better|worse|faster)\b)[a-z]": "is not",
    r"\bas (?:it is|they are)[,.;:]": "unchanged",
    r"\bstays? as (?:it|they)\b": "is unchanged",
    r"\bplays? no part\b": "is ignored",
    r"\bof your own\b": "custom",
    r"\bof its own\b": "separate; custom",
    r"\bwhatever (?:it|they) (?:is|are)\b": "any",
    r"\bsorted to (?:rise|fall)\b": "in ascending order; in descending order",
    r"\bthe largest stay\b": "the largest are kept",
    r"\bentries that (?:stay|go)\b": "kept entries; pruned entries",
    r"\bthat leaves? (?:come|go)\b": "(rewrite)",
    r"\bcome and go\b": "differ",
    r"\bthe most (?:steps|iterations|working sets|rounds)\b": "maximum number of",
    r"\bhow many (?:steps|rounds|strengths|groups|entries|inputs) (?:are|without)\b": "number of",
    r"\b(?:a|the) result so far\b": "an earlier result",
    r"\b(?:comes|come) back\b": "is returned",
    r"\bis there,": "is given,",
    r"\b(?:is|are) looked at\b": "is evaluated",
    r"\bto look at\b": "(delete)",
    r"\bfor want of\b": "in the absence of",
    r"\bstands? (?:in|for|beside|below|next to)\b": "replaces; is",
    r"\bwhere (?:there (?:is|are) (?:one|none|any|some))\b": "if present",
    r"\bif there (?:is|are) (?:one|none|any|some)\b": "if present",
    r"\bwhich (?:of|may) [a-z ]+ counts\b": "the one that applies",
    r"\bthe first (?:rule|match)(?: found)?(?: in [a-z ]+)? counts\b": "the first match applies",
    r"\b(?:cannot|can) be seen\b": "is traced; is concrete",
    r"\bcannot be is\b": "invalid ... raises",
    r"\bwithout a word\b": "silently",
    r"\bmakes? up for\b": "compensates",
    r"\bthe map of the house\b": "package layers",
    r"\bit is(?: not)? known (?:how|which|where)\b": "(rewrite)",
}  # fmt: skip


def literal(words):
    """The longest word that a match must contain, to skip texts quickly."""
    while (inner := re.sub(r"\([^()]*\)\??", " ", words)) != words:
        words = inner
    found = re.findall(r"[a-z]{3,}(?![a-z]*\?)", re.sub(r"\\b|\[.*?\]", " ", words))
    return max(found, key=len, default="")


COMPILED = [
    (literal(words), re.compile(words.replace(" ", r"\s+")), better)
    for words, better in PHRASES.items()
]
FIRST_WORDS = re.compile(
    r'(?<=""")(?:What|Whatever|How (?:far|much|many)|Where|Why|Who)\b(?!.*\?""")[^"\n]*'
)
JOINED = re.compile(r'"[ \t]*\n[ \t]*[fr]?"|\n[ \t]*# ')  # continued strings and comments


def pieces(path):
    """The texts of a file with their first lines."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(text)["cells"]):
            if cell["cell_type"] == "markdown":
                yield number, "".join(cell["source"])
    else:
        yield 1, JOINED.sub("\n", text) if path.suffix == ".py" else text


def faults(path):
    for first, text in pieces(path):
        lowered = text.lower()
        found = [(x, "a noun phrase or a verb") for x in FIRST_WORDS.finditer(text)]
        for word, pattern, better in COMPILED:
            if word in lowered:
                found += [(x, better) for x in pattern.finditer(lowered)]
        for x, better in found:
            line = first + text.count("\n", 0, x.start())
            yield f"{path}:{line}: {' '.join(x[0].split())!r} -> {better}"


PLACES = {
    **{
        folder.name: sorted(folder.rglob("*.py"))
        for folder in sorted((ROOT / "sparsejax").iterdir())
        if folder.is_dir() and folder.name != "__pycache__"
    },
    "sparsejax": sorted((ROOT / "sparsejax").glob("*.py")),
    "pages": [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    ],
    "notebooks": sorted((ROOT / "notebooks").glob("*.ipynb")),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_text_is_plain_english(place):
    found = [fault for path in PLACES[place] for fault in faults(path)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        '"""What a solver gives back."""',
        "# The masks are computed anew.",
        'raise ValueError(\n    f"{x} is "\n    "no number"\n)',
    ],
)
def test_dialect_is_found(tmp_path, text):
    path = tmp_path / "module.py"
    path.write_text(text + "\n")
    assert list(faults(path))
