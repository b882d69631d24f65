"""Class names: which names mean the same class, and how the classes of a model and of data correspond.

    match(["Soup", "Noodles-Pasta"], "the photos", ["Noodles/Pasta", "Soup"], "the model", "rename") == (1, 0)

A label is a position in a list of names, and two files can have the same classes in a different order. This
module matches them, for a model and its data and for a teacher and its student.
"""

import unicodedata

from compression.command_line import UserError, tell

FOOD11_CLASSES = (
    "Bread", "Dairy product", "Dessert", "Egg", "Fried food", "Meat", "Noodles/Pasta", "Rice", "Seafood",
    "Soup", "Vegetable/Fruit",
)  # fmt: skip


def whole_number(text):
    """A non-negative whole number of at most 255 ASCII digits (as in a file name), or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 255 else None


def canonical(name):
    """A name as it is compared: Unicode NFC, stripped, `-` and `_` as `/`, numbers without leading zeros."""
    name = unicodedata.normalize("NFC", name).strip().replace("-", "/").replace("_", "/")
    number = whole_number(name)
    return name if number is None else str(number)


_FOOD11 = tuple(map(canonical, FOOD11_CLASSES))


def unnamed(count):
    """Names for classes without names: "class 0", "class 1", ..."""
    return tuple(f"class {label}" for label in range(count))


def is_food11(names):
    """Whether these are the names of all Food-11's classes, in any order."""
    return sorted(map(canonical, names)) == sorted(_FOOD11)


def class_numbers(names):
    """The class number of each name: 3 for "3" and "class 3", and for "Egg" if all classes are Food-11's.

    None if the names are not numbers 0 to n-1 in one of these forms.
    """
    keys = list(map(canonical, names))
    for known in (_FOOD11, tuple(map(str, range(len(keys)))), unnamed(len(keys))):
        if sorted(keys) == sorted(known):
            return tuple(map(known.index, keys))
    return None


def in_class_order(names, whose):
    """Folder names in the order of their labels: by class number, by value if all are numbers, or as text.

    whose: their owner, for the UserError about two names of the same class.
    """
    found = {}
    for name in names:
        first = found.setdefault(canonical(name), name)
        if first != name:
            raise UserError(f"{first} and {name} are the same class of {whose}; put them into one folder")
    numbers = class_numbers(names) or [whole_number(name.strip()) for name in names]
    return sorted(names) if None in numbers else [name for _, name in sorted(zip(numbers, names))]


def match(names, whose, others, whose_others, advice, log=tell):
    """The position in `others` of each of `names`, as a tuple; `others` can have more classes.

    Names are compared in `canonical` form. If one side has numbers ("3", "class 3") and the other side
    Food-11's names, classes are matched by number. Classes without names are matched by position. Both are
    assumptions, and `log` gets a sentence about them (default: a line on stderr). Raises UserError for a
    class that is not in `others`, and for two names of the same class.
    """
    exact = {canonical(name): position for position, name in enumerate(others)}
    exact |= {name: position for position, name in enumerate(others)}
    positions = {}
    for position, number in enumerate(class_numbers(others) or ()):
        positions[str(number)] = position
        if len(others) == len(_FOOD11):
            positions[_FOOD11[number]] = position
    positions |= exact
    found = [positions.get(name, positions.get(canonical(name))) for name in names]
    if None in found and len(names) == len(others) and unnamed(len(names)) in (tuple(names), tuple(others)):
        log(
            f"note: the {len(names)} classes of {whose} and of {whose_others} are assumed to be in the same "
            f"order, {listed(names)}, because one of them has no names"
        )
        return tuple(range(len(names)))
    for name, position in zip(names, found):
        if position is None:
            theirs = f"the classes of {whose_others} ({listed(others)})"
            raise UserError(f"class {name} of {whose} ({listed(names)}) is none of {theirs}; {advice}")
        first = names[found.index(position)]
        if first != name:
            both = f"classes {first} and {name} of {whose}"
            raise UserError(f"{both} are the same class of {whose_others}; {advice}")
    assumed = [canonical(name) for name in names if not {name, canonical(name)} & exact.keys()]
    if assumed:
        food = f", as in Food-11: 3 is {FOOD11_CLASSES[3]}" * (is_food11(others) or assumed[0] in _FOOD11)
        log(f"note: {whose} and {whose_others} are matched by class number{food}")
    return tuple(found)


def listed(names, most=12):
    """Names as text, of more than `most` the first ones."""
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)
