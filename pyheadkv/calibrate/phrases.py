"""The stock that needles are made of: people, words, and patterns of sentences with their questions.

``{who}`` is a person, ``{x}`` the value that is asked for. A pattern's prefix leaves the answer to the model from the
value on. None of the values is a part of the prose in text/, of a pattern or of another value; a test looks.
"""

from __future__ import annotations

from dataclasses import dataclass

_PEOPLE = """
    Agnes Bruno Celia Dario Edith Fabian Greta Hugo Irma Jonas Katrin Leon Mira Nadia Oskar Paula Quentin Rosa Stefan
    Tilda Ulrich Vera Walter Xenia Yusuf Zelda Anton Berta Cosima Dmitri Elsa Florian Gisela Henrik Ilse Jakob Klara
    Lorenz Magda Niklas
"""
_WORDS = """
    marzipan obsidian pelican saffron walrus trombone juniper mammoth parsnip gondola lobster nutmeg porcupine quartz
    raspberry sombrero tapioca turquoise volcano zeppelin artichoke bagpipe cinnamon dromedary eucalyptus flamingo
    gazelle hyacinth iguana jasmine kangaroo lavender mandolin narwhal octopus papyrus rhubarb sapphire tarantula
    vanilla
"""
PEOPLE = tuple(_PEOPLE.split())
WORDS = tuple(_WORDS.split())
ADJECTIVES = ("purple", "velvet", "hungry", "polite", "frozen", "crooked", "golden", "sleepy", "salty", "wooden")
NOUNS = ("dragon", "violin", "biscuit", "comet", "ladder", "parrot", "magnet", "pyramid", "tiger", "anchor")


@dataclass(frozen=True)
class CopyPattern:
    """A sentence whose end is asked for; `values` only where the kind does not make them."""

    sentence: str
    question: str
    prefix: str
    values: tuple[str, ...] = ()


COPY: dict[str, tuple[CopyPattern, ...]] = {
    "digits": (
        CopyPattern(
            "{who} left a suitcase at the station and got the ticket {x} for it.",
            "Which ticket did {who} get for the suitcase?",
            "{who} got the ticket",
        ),
        CopyPattern(
            "{who} has set the padlock of the boathouse to {x}.",
            "To what has {who} set the padlock of the boathouse?",
            "{who} has set the padlock of the boathouse to",
        ),
        CopyPattern(
            "Whoever wants to reach {who} in the workshop has to dial {x}.",
            "What does one dial to reach {who} in the workshop?",
            "To reach {who}, one has to dial",
        ),
        CopyPattern(
            "In the register of the abbey {who} is entered under {x}.",
            "Under what is {who} entered in the register of the abbey?",
            "In the register {who} is entered under",
        ),
        CopyPattern(
            "The meter in the flat of {who} stands at {x}.",
            "At what does the meter in the flat of {who} stand?",
            "The meter of {who} stands at",
        ),
    ),
    "words": (
        CopyPattern(
            'At the gate {who} whispers the password "{x}" and is let in.',
            "Which password does {who} whisper at the gate?",
            'The password that {who} whispers is "',
        ),
        CopyPattern(
            'The little boat that {who} painted is called "{x}".',
            "What is the boat called that {who} painted?",
            'The boat that {who} painted is called "',
        ),
        CopyPattern(
            'Above the door of {who} somebody has carved the word "{x}".',
            "Which word is carved above the door of {who}?",
            'The word above the door of {who} is "',
        ),
        CopyPattern(
            'To the new horse {who} has given the name "{x}".',
            "Which name has {who} given to the new horse?",
            'The name of the horse of {who} is "',
        ),
    ),
    "codes": (
        CopyPattern(
            "On the crate that {who} ordered there is the label {x}.",
            "Which label is on the crate that {who} ordered?",
            "On the crate of {who} there is the label",
        ),
        CopyPattern(
            "The van that {who} drives carries the plate {x}.",
            "Which plate does the van carry that {who} drives?",
            "The van of {who} carries the plate",
        ),
        CopyPattern(
            "The bag of seeds from {who} is marked {x}.",
            "How is the bag of seeds from {who} marked?",
            "The bag of seeds from {who} is marked",
        ),
        CopyPattern(
            "Into the frame of the bicycle of {who} is stamped {x}.",
            "What is stamped into the frame of the bicycle of {who}?",
            "Into the bicycle of {who} is stamped",
        ),
    ),
    "facts": (
        CopyPattern(
            "{who} has hidden the silver spoon {x}.",
            "Where has {who} hidden the silver spoon?",
            "{who} has hidden the silver spoon",
            (
                "under the third step of the tower",
                "behind the loose tile in the bathroom",
                "inside the big drum in the attic",
                "between two sacks of barley",
                "below the statue of the lion",
                "in the pocket of a green raincoat",
            ),
        ),
        CopyPattern(
            "For the birthday {who} wishes for {x}.",
            "What does {who} wish for?",
            "{who} wishes for",
            (
                "a telescope with a brass stand",
                "a pair of yellow rubber boots",
                "a ride in a hot air balloon",
                "a hammock for the two birches",
                "a recipe book from Portugal",
                "a kite with a long tail",
            ),
        ),
        CopyPattern(
            "{who} earns a living by {x}.",
            "How does {who} earn a living?",
            "{who} earns a living by",
            (
                "repairing old radios",
                "teaching parrots to speak",
                "selling chestnuts in the park",
                "translating poems from Finnish",
                "painting signs for butchers",
                "training horses for the circus",
            ),
        ),
    ),
}


@dataclass(frozen=True)
class Relation:
    """The difference between two people: the sentence that says it, and how somebody is described by it."""

    fact: str
    someone: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Thing:
    """A thing that the described one has, and how one asks for it by name."""

    sentence: str
    question: str
    prefix: str
    is_word: bool


RELATIONS = (
    Relation(
        "{who} works at the {trait}.",
        "the one who works at the {trait}",
        ("bakery", "port", "museum", "hospital", "sawmill", "pharmacy", "airport", "prison"),
    ),
    Relation(
        "{who} keeps a {trait}.",
        "the one who keeps a {trait}",
        ("cat", "goat", "tortoise", "donkey", "falcon", "hamster", "rabbit"),
    ),
    Relation(
        "{who} plays the {trait}.",
        "the one who plays the {trait}",
        ("flute", "cello", "harp", "trumpet", "guitar", "accordion"),
    ),
    Relation(
        "{who} wears a {trait} scarf.",
        "the one with the {trait} scarf",
        ("red", "blue", "white", "grey", "orange", "pink"),
    ),
    Relation(
        "{who} comes from {trait}.",
        "the one from {trait}",
        ("Norway", "Brazil", "Egypt", "Japan", "Ireland", "Greece"),
    ),
)
THINGS = (
    Thing(
        "The locker of {who} has the number {x}.", "Which locker does {who} have?", "{who} has the locker number", False
    ),
    Thing(
        "The badge of {who} has the number {x}.", "Which badge does {who} have?", "{who} has the badge number", False
    ),
    Thing("The room of {who} has the number {x}.", "Which room does {who} have?", "{who} has the room number", False),
    Thing(
        'The dog of {who} is called "{x}".', "What is the dog of {who} called?", 'The dog of {who} is called "', True
    ),
    Thing('The ship of {who} is the "{x}".', "Which ship does {who} have?", 'The ship of {who} is the "', True),
)
