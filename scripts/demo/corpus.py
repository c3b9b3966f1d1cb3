"""Generate the demo's invented encyclopedia in the line format of WikiText-raw.

Every word is made here: a small context-free grammar is expanded over the facts of an
invented world, so names and numbers recur inside an article (a model gains from
context) while no text is anybody else's. The same seed gives the same bytes everywhere.

``grammar.txt`` is the grammar. A hole in a template is filled by a fact of the article,
else by an alternative of the rule of that name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ATLAS_SEED = 1906
TEST_SEED = 2311
TRAIN_SEED = 6695

# How long the pages of every world are: (sections, sentences of a section); shuffled.
# Stubs without a section stay below 256 tokens, the last ones go beyond 2,000.
PAGE_SHAPES = (
    *[(0, 2)] * 2,
    *[(0, 4)] * 2,
    *[(1, 5)] * 2,
    *[(2, 8)] * 3,
    *[(3, 10)] * 2,
    *[(4, 12)] * 3,
    *[(6, 13)] * 2,
    *[(8, 15)] * 2,
)

_T = TypeVar("_T")
Scope = Mapping[str, "str | Callable[[], str]"]


class Draw:
    """Random choices on top of ``random.Random.random`` alone.

    Its sequence for an integer seed is the one that Python promises to keep; how
    ``choice``, ``sample`` and ``shuffle`` use it has changed between versions.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def between(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + int(self._random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def pick(self, options: Sequence[_T]) -> _T:
        """One of ``options``, each as likely."""
        return options[self.between(0, len(options) - 1)]

    def skewed(self, options: Sequence[_T]) -> _T:
        """One of ``options``, early ones more often, as words are in real text."""
        # Multiplied out: unlike a power, products round the same way everywhere.
        uniform = self._random()
        return options[int(uniform * (1 + uniform) / 2 * len(options))]

    def shuffled(self, options: Sequence[_T]) -> list[_T]:
        """``options`` in a new order (Fisher-Yates)."""
        order = list(options)
        for last in range(len(order) - 1, 0, -1):
            other = self.between(0, last)
            order[last], order[other] = order[other], order[last]
        return order


def words(text: str) -> tuple[str, ...]:
    """The comma-separated entries of a word list."""
    return tuple(entry.strip() for entry in text.replace("\n", " ").split(","))


Sections = list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Kind:
    """The grammar of one kind of article: its lead and its titled sections."""

    lead: list[str]
    more: list[str]
    sections: Sections


def read_grammar(text: str) -> tuple[dict[str, list[str]], dict[str, Kind], Sections]:
    """The rules, the kinds of article and the shared sections of ``grammar.txt``."""
    rules: dict[str, list[str]] = {}
    kinds: dict[str, Kind] = {}
    shared: Sections = []
    for block in re.split(r"^@", text, flags=re.MULTILINE)[1:]:
        head, *lines = block.splitlines()
        lines = [line for line in lines if line]
        match head.split():
            case ["words", name]:
                rules[name] = list(words(" ".join(lines)))
            case ["rule", name]:
                rules[name] = lines
            case ["kind", name]:
                (_, lead), (_, more), *sections = _sections(lines)
                kinds[name] = Kind(lead, more, sections)
            case ["shared"]:
                shared = _sections(lines)
            case _:
                raise ValueError(f"grammar.txt: @{head} is no block")
    return rules, kinds, shared


def _sections(lines: Sequence[str]) -> Sections:
    sections: Sections = []
    for line in lines:
        if line.startswith("= "):
            sections.append((line.lstrip("= "), []))
        else:
            sections[-1][1].append(line)
    return sections


RULES, KINDS, SHARED_SECTIONS = read_grammar(
    Path(__file__).with_name("grammar.txt").read_text(encoding="utf-8")
)

# What takes "the" before its name in the middle of a sentence.
WITH_ARTICLE = ("river", "battle", "bird", "railway")

CONNECTORS = words(
    "However, For this reason, As a result, Even so, By contrast, In fact"
)


class Grammar:
    """Expands rules over a scope of facts, drawing every choice from one ``Draw``."""

    _hole = re.compile(r"\{(\w+)\}")
    _choice = re.compile(r"\[([^\[\]]*)\]")
    # First words that lose their capital behind a connector; all others are names.
    _lowered = frozenset(
        words("The, A, It, Its, He, She, His, Her, There, In, Most, No")
    )

    def __init__(self, draw: Draw, scope: Scope) -> None:
        self._draw = draw
        self._scope = scope

    def expand(self, template: str) -> str:
        """``template`` with its choices made and its holes filled, innermost first."""
        while "[" in template:
            template = self._choice.sub(
                lambda match: self._draw.pick(match[1].split("|")), template
            )
        return self._hole.sub(lambda match: self._fill(match[1]), template)

    def sentence(self, template: str, *, connect: bool = True) -> str:
        """A template as prose: plurals, ``a``/``an``, capitals and spaces put right.

        With ``connect``, one in eight begins with a connector such as "However".
        """
        text = " ".join(self.expand(template).split())
        text = re.sub(r"(?<=[^aeiou])ys\b", "ies", text)
        text = re.sub(r"chs\b", "ches", text)
        if connect and self._draw.chance(0.12) and text.split()[0] in self._lowered:
            text = f"{self._draw.pick(CONNECTORS)} , {text[0].lower()}{text[1:]}"
        text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
        return re.sub(r"(?:^|(?<= \. ))[a-z]", lambda match: match[0].upper(), text)

    def _fill(self, name: str) -> str:
        fact = self._scope.get(name)
        if fact is None:
            return self.expand(self._draw.skewed(RULES[name]))
        return fact if isinstance(fact, str) else fact()


@dataclass(frozen=True)
class Person:
    """An invented person; the pronouns agree with the first name."""

    first: str
    last: str
    female: bool
    job: str
    town: str

    @property
    def name(self) -> str:
        """First and last name."""
        return f"{self.first} {self.last}"

    def pronouns(self) -> tuple[str, str, str]:
        """Subject, object and possessive pronoun."""
        return ("she", "her", "her") if self.female else ("he", "him", "his")


ONSETS = words(
    """b, br, c, d, dr, f, g, gr, h, j, k, kr, l, m, n, p, r, s, st, t, th, tr, v, w,
    sk, sch, fl, gl"""
)
VOWELS = words("a, e, i, o, u, ar, el, en, or, il, an, er, ou, ei, é, ö, ø")
MIDDLES = words("b, d, l, ll, m, n, nd, r, rr, s, ss, st, t, v, rk, lm, th, g")
TOWN_ENDS = words(
    "by, ford, mouth, stad, holm, wick, ham, borg, haven, dale, minster, ness, kirk"
)
LAST_ENDS = words("sen, mann, er, ov, ard, ey, ini, quist, ley, ek, and, ell, is, ow")
BIRD_ENDS = words(
    "warbler, heron, finch, plover, tern, owl, thrush, lark, duck, rail, wren, swift"
)
SHIP_FIRST = words(
    "Northern, Grey, Silver, Proud, Royal, Golden, Morning, White, Swift, Faithful"
)
SHIP_LAST = words(
    "Star, Heron, Lady, Crown, Arrow, Hope, Wind, Queen, Falcon, Maid, Light, Spirit"
)
WORK_FIRST = words("The Last, The Blind, The Secret, The Winter, The Lost, The Two")
WORK_LAST = words(
    "Miller, Garden, Sailors, Bride, Bell, Kingdom, Letter, Ferry, Sisters, Judge"
)


class Atlas:
    """The people and places of every split, with what is always true of them.

    As in a real encyclopedia, articles that a model has not seen mention names that it
    has, so that it needs knowledge (who lives where, which region a town is in) and not
    grammar alone. Knowledge is what pruning takes first.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.countries = [self._stem(2) + draw.pick(("ia", "land")) for _ in range(6)]
        self.regions = [self._stem(2) + draw.pick(("ia", "mark")) for _ in range(18)]
        self.mountains = [f"Mount {self._stem(2)}" for _ in self.regions]
        self.towns = self._distinct(
            100, lambda: self._stem(draw.between(1, 2)) + draw.pick(TOWN_ENDS)
        )
        self.rivers = self._distinct(40, lambda: self._stem(2))
        first_names = [self._stem(2) for _ in range(40)]
        last_names = self._distinct(240, lambda: self._stem(2) + draw.pick(LAST_ENDS))
        self.people = [
            self._person(draw.pick(first_names), last) for last in last_names
        ]
        self.region_of = {
            place: draw.pick(self.regions) for place in self.towns + self.rivers
        }
        self.country_of = {region: draw.pick(self.countries) for region in self.regions}
        self.mountain_of = dict(zip(self.regions, self.mountains, strict=True))

    def _distinct(self, count: int, invent: Callable[[], str]) -> list[str]:
        names: dict[str, None] = {}
        while len(names) < count:
            names[invent()] = None
        return list(names)

    def _person(self, first: str, last: str) -> Person:
        draw = self.draw
        female = draw.chance(0.4)
        ending = "a" if female else draw.pick(("", "n", "s"))
        job = draw.pick(RULES["job"])
        return Person(first + ending, last, female, job, draw.pick(self.towns))

    def _stem(self, syllables: int) -> str:
        """An invented name of so many syllables and perhaps a closing consonant."""
        draw = self.draw
        name = draw.pick(ONSETS)
        for _ in range(syllables - 1):
            name += draw.pick(VOWELS) + draw.pick(MIDDLES)
        name += draw.pick(VOWELS)
        if draw.chance(0.6):
            name += draw.pick(("n", "l", "r", "s", "m", "th", "k"))
        return name[0].upper() + name[1:]


class World:
    """A part of the atlas with wars, ships and works: what a set of pages shares."""

    def __init__(self, draw: Draw, atlas: Atlas) -> None:
        self.draw = draw
        self.atlas = atlas
        self.towns = draw.shuffled(atlas.towns)[:14]
        self.people = draw.shuffled(atlas.people)[:24]
        self.rivers = draw.shuffled(atlas.rivers)[:6]
        regions = [atlas.region_of[place] for place in self.towns[:4]]
        self.wars = [
            draw.pick(
                (
                    f"{draw.pick(regions)} War",
                    f"War of the {draw.pick(('Bridges', 'Crowns', 'Rivers', 'Salt'))}",
                    f"{draw.pick(('First', 'Second'))} {draw.pick(regions)} War",
                )
            )
            for _ in range(2)
        ]
        self.birds = [
            f"{draw.pick(regions + self.rivers)} {draw.pick(BIRD_ENDS)}"
            for _ in range(5)
        ]
        self.ships = self._paired(SHIP_FIRST, SHIP_LAST)
        self.works = self._paired(WORK_FIRST, WORK_LAST)
        self._titled: set[str] = set()

    def _someone(self) -> str:
        """A person with what the atlas says: the trade and the home town."""
        person = self.draw.pick(self.people)
        return f"{person.name} , a {person.job} from {person.town}"

    def _paired(self, firsts: Sequence[str], lasts: Sequence[str]) -> list[str]:
        """Four names of two words each, no word twice."""
        pairs = zip(self.draw.shuffled(firsts), self.draw.shuffled(lasts), strict=False)
        return [" ".join(pair) for pair in pairs][:4]

    def facts(self, kind: str) -> dict[str, str | Callable[[], str]]:
        """What one article of ``kind`` says the same way throughout.

        The article's own people and places come back several times; where a template
        asks for just any person or town, one of the world is drawn, these few often.
        """
        draw = self.draw
        home, other, *_ = towns = draw.shuffled(self.towns)
        people = draw.shuffled(self.people)
        himself, founder, teacher, general, mayor = people[:5]
        rivers = draw.shuffled(self.rivers)
        begun = draw.between(1610, 1890)
        end = begun + draw.between(24, 78)
        subject, object_, possessive = himself.pronouns()
        region = self.atlas.region_of[rivers[0] if kind == "river" else home]
        titles = {
            "town": home,
            "river": rivers[0],
            "ship": self.ships[0],
            "composer": himself.name,
            "battle": f"Battle of {home}",
            "bird": self.birds[0],
            "opera": self.works[0],
            "railway": f"{home} and {other} Railway",
        }
        # A title is used once in a world: the next article gets the next ship, bird
        # or work, and draws its place or person again in the rare case of a clash.
        for names in (self.ships, self.birds, self.works):
            names.append(names.pop(0))
        if titles[kind] in self._titled:
            return self.facts(kind)
        self._titled.add(titles[kind])
        return {
            "name": titles[kind],
            "the_name": ("the " if kind in WITH_ARTICLE else "") + titles[kind],
            "home": rivers[0] if kind == "town" else home,
            "other": other,
            "region": region,
            "country": self.atlas.country_of[region],
            "second": rivers[1],
            "river": lambda: draw.pick(rivers[:3]),
            "crossing": rivers[0],
            "mountain": self.atlas.mountain_of[region],
            "founder": founder.name,
            "founder_he": founder.pronouns()[0],
            "founder_his": founder.pronouns()[2],
            "teacher": teacher.name,
            "spouse": mayor.name,
            "mayor": mayor.name,
            "mayor_job": mayor.job,
            "captain": mayor.name,
            "captain_him": mayor.pronouns()[1],
            "general": f"General {general.last}",
            "winner": draw.pick((f"General {general.last}", founder.name)),
            "last": himself.last,
            "he": subject,
            "him": object_,
            "his": possessive,
            "He": subject.capitalize(),
            "His": possessive.capitalize(),
            "hero": people[5].first,
            "rival": people[6].first,
            "voice": draw.pick(RULES["instrument"]),
            "work": draw.pick(self.works),
            "bird": draw.pick(self.birds),
            "twin": draw.pick(self.ships),
            "line": f"{other} Line",
            "war": draw.pick(self.wars),
            "begun": str(begun),
            "end": str(end),
            "person": lambda: draw.skewed(people).name,
            "town": lambda: draw.skewed(towns),
            "someone": self._someone,
            "span": lambda: _span(draw, begun, end),
            "years": lambda: f"{begun} and {draw.between(begun + 1, end)}",
            "year": lambda: str(draw.between(begun, end)),
            "day": lambda: str(draw.between(1, 28)),
            "n": lambda: str(draw.between(11, 99)),
            "hundred": lambda: str(draw.between(2, 19) * 50),
            "thousand": lambda: f"{draw.between(1, 39)} @,@ {draw.between(2, 19) * 50}",
            "decimal": lambda: f"{draw.between(2, 29)} @.@ {draw.between(1, 9)}",
            "km": lambda: _kilometres(draw.between(20, 299)),
            "metres": lambda: _metres(draw.between(11, 99)),
            "percent": lambda: str(draw.between(3, 60)),
        }


def _span(draw: Draw, begun: int, end: int) -> str:
    first = draw.between(begun, end - 1)
    return f"{first} – {draw.between(first + 1, end)}"


def _kilometres(tenths: int) -> str:
    miles = tenths * 621 // 1000
    whole, part = divmod(tenths, 10)
    return f"{whole} @.@ {part} km ( {miles // 10} @.@ {miles % 10} mi )"


def _metres(metres: int) -> str:
    return f"{metres} m ( {metres * 328 // 100} ft )"


def page(world: World, kind: str, shape: tuple[int, int]) -> list[str]:
    """The lines of one article, in WikiText's layout, without line ends.

    A blank line is a single space; a title or heading has one before and after it, an
    article one more at its end. No template is used twice in a section.
    """
    draw = world.draw
    scope = world.facts(kind)
    grammar = Grammar(draw, scope)
    section_count, sentence_count = shape
    fillers: list[str] = []

    def filler() -> str:
        if not fillers:
            fillers.extend(draw.shuffled(RULES["filler"]))
        return fillers.pop()

    def paragraph(templates: Sequence[str]) -> str:
        return f" {' '.join(map(grammar.sentence, templates))} "

    lead = [draw.pick(KINDS[kind].lead), *draw.shuffled(KINDS[kind].more)]
    lines = [" ", f" = {scope['name']} = ", " "]
    opening = grammar.sentence(lead[0], connect=False)
    details = lead[1 : 2 + min(sentence_count, section_count)]
    lines.append(f" {opening}{paragraph(details)}")
    if section_count == 0 and sentence_count > 2:
        lines.append(paragraph([filler(), filler()]))
    sections = [*KINDS[kind].sections, *draw.shuffled(SHARED_SECTIONS)]
    for title, templates in sections[:section_count]:
        lines += [" ", f" = = {title} = = ", " "]
        deck = draw.shuffled(templates)
        deck = draw.shuffled(
            [*deck, *(filler() for _ in range(sentence_count - len(deck)))]
        )[:sentence_count]
        half = draw.between(3, 6)
        lines.append(paragraph(deck[:half]))
        while deck := deck[half:]:
            if len(deck) > 4 and draw.chance(0.4):
                lines += [" ", f" = = = {grammar.expand('{span}')} = = = ", " "]
            half = draw.between(3, 6)
            lines.append(paragraph(deck[:half]))
    return [*lines, " "]


def worlds(seed: int, count: int) -> list[list[str]]:
    """The pages of ``count`` worlds, each page as its text."""
    draw = Draw(seed)
    atlas = Atlas(Draw(ATLAS_SEED))
    pages = []
    for _ in range(count):
        world = World(draw, atlas)
        shapes = draw.shuffled(PAGE_SHAPES)
        kinds = [*KINDS, *KINDS, *KINDS][: len(shapes)]
        pages.append(
            [
                "".join(f"{line}\n" for line in page(world, kind, shape))
                for kind, shape in zip(draw.shuffled(kinds), shapes, strict=True)
            ]
        )
    return pages


def test_split() -> str:
    """The text that ships as ``demo.txt``: one world of its own."""
    return "".join(worlds(TEST_SEED, 1)[0])


def train_split(count: int) -> list[list[str]]:
    """``count`` worlds to train and calibrate on: other articles, same atlas."""
    return worlds(TRAIN_SEED, count)


def rows(text: str) -> list[str]:
    """The text as the rows of the ``wikitext`` data set: a blank line is ``""``."""
    return [line if line.strip() else "" for line in text.splitlines(keepends=True)]
