"""Sentences of the evaluation's own, none of them like those that head scores are measured with (calibrate/phrases.py).

``{key}`` is a thing, ``{x}`` the number that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """A sentence that holds a number, and how one asks for it. `prefix` and `many` leave the answer to the model."""

    kind: str
    sentence: str
    question: str
    prefix: str
    question_many: str
    prefix_many: str


FORMS = (
    Form(
        "serial",
        "The serial number of the {key} is {x}.",
        "What is the serial number of the {key}?",
        "The serial number of the {key} is",
        "What are all the serial numbers of the {key}?",
        "The serial numbers of the {key} are",
    ),
    Form(
        "invoice",
        "For the {key} we sent out invoice number {x} last week.",
        "Which invoice number was sent out for the {key}?",
        "For the {key} we sent out invoice number",
        "Which invoice numbers were sent out for the {key}?",
        "For the {key} we sent out the invoice numbers",
    ),
    Form(
        "alarm",
        "To silence the alarm of the {key}, type {x} and wait.",
        "What has to be typed to silence the alarm of the {key}?",
        "To silence the alarm of the {key}, type",
        "What can be typed to silence the alarm of the {key}? Give all numbers.",
        "To silence the alarm of the {key}, type one of",
    ),
    Form(
        "archive",
        "In the archive the {key} can be found under number {x}.",
        "Under which number can the {key} be found in the archive?",
        "In the archive the {key} can be found under number",
        "Under which numbers can the {key} be found in the archive?",
        "In the archive the {key} can be found under the numbers",
    ),
    Form(
        "magic",
        "One of the magic numbers for the {key} is: {x}.",
        "What is the magic number for the {key} mentioned in the text?",
        "The magic number for the {key} mentioned in the text is",
        "What are all the magic numbers for the {key} mentioned in the text?",
        "The magic numbers for the {key} mentioned in the text are",
    ),
)


@dataclass(frozen=True)
class Asked:
    """A sentence that holds a value, "number", "word" or "code", and how one asks for it in a chat."""

    kind: str
    value: str
    sentence: str
    question: str
    prefix: str


ASKED = (
    Asked(
        "locker",
        "number",
        "The locker number of the {key} is {x}.",
        "What is the locker number of the {key}?",
        "The locker number of the {key} is",
    ),
    Asked(
        "password",
        "word",
        "The password of the {key} is {x}.",
        "What is the password of the {key}?",
        "The password of the {key} is",
    ),
    Asked(
        "label",
        "code",
        "The label on the {key} reads {x}.",
        "What does the label on the {key} read?",
        "The label on the {key} reads",
    ),
    Asked(
        "phone",
        "number",
        "Whoever asks about the {key} should call extension {x}.",
        "Which extension should one call about the {key}?",
        "Whoever asks about the {key} should call extension",
    ),
    Asked(
        "colour",
        "word",
        "They wrote the word {x} on the back of the {key}.",
        "Which word did they write on the back of the {key}?",
        "On the back of the {key} they wrote the word",
    ),
)
_WORDS = """
    walnut thunder velvet compost mustard saffron gravel sapphire cinnamon puzzle anchor tulip marzipan bamboo cobalt
"""
_ADJECTIVES = """
    copper silent northern striped narrow amber marble distant hollow misty royal tiny rapid gentle square foreign
"""
_THINGS = """
    lantern windmill harbour otter chapel tractor falcon pavilion compass glacier kettle balcony submarine carousel
    greenhouse telescope
"""
_NAMES = "Abigail Bertram Clarissa Dominic Eleanor Frederick Georgina Humphrey Isolde Jasper"
ADJECTIVES, THINGS, NAMES = tuple(_ADJECTIVES.split()), tuple(_THINGS.split()), tuple(_NAMES.split())
WORDS = tuple(_WORDS.split())

# (what is said of somebody, how one speaks of that somebody)
TRAITS = (
    ("{who} mends old clocks.", "The mender of old clocks"),
    ("{who} sings in the opera.", "The singer from the opera"),
    ("{who} flies a glider.", "The pilot of the glider"),
    ("{who} breeds racing pigeons.", "The breeder of racing pigeons"),
    ("{who} writes detective stories.", "The writer of detective stories"),
    ("{who} tames lions.", "The tamer of lions"),
)
# (kind, what that somebody has, the question about a name, how the answer begins)
HOLDINGS = (
    ("box", "{someone} lives at box {x}.", "At which box does {who} live?", "{who} lives at box"),
    ("bus", "{someone} rides bus number {x}.", "Which bus number does {who} ride?", "{who} rides bus number"),
    (
        "card",
        "{someone} has the membership card {x}.",
        "Which membership card does {who} have?",
        "{who} has the membership card",
    ),
)
