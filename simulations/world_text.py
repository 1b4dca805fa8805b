"""The catalogue of the synthetic world: four domains of twelve topics, in texts an encoder can tell apart.

Everything here is what the *text* reveals. What it does not reveal, which topics go together and which follow
one another, is drawn in `simulations.world`.
"""

from __future__ import annotations

import numpy as np

from shared.catalogue import Catalogue
from shared.schema import Item

#: domain -> topic -> eight things that topic is about.
TOPICS: dict[str, dict[str, str]] = {
    "films": {
        "space opera": ("starship, wormhole, alien envoy, moon colony, android crew, star map, orbital station, comet"),
        "courtroom drama": "verdict, jury, cross-examination, witness, judge, appeal, alibi, defence lawyer",
        "heist": ("bank vault, safecracker, getaway car, diamond, blueprint, double-cross, casino, forged passport"),
        "ghost story": (
            "haunted house, seance, cellar door, apparition, old mirror, curse, graveyard, whispering wall"
        ),
        "romantic comedy": ("wedding, blind date, love letter, best man, first kiss, break-up, florist, summer fling"),
        "western": ("sheriff, saloon, cattle drive, outlaw, frontier town, gold claim, duel at noon, stagecoach"),
        "martial arts": (
            "kung fu master, dojo, tournament, sword school, monk, rival clan, secret technique, nunchaku"
        ),
        "nature documentary": (
            "coral reef, migration, rainforest, wolf pack, glacier, penguin colony, savannah, volcano"
        ),
        "sports drama": (
            "underdog team, boxing ring, coach, championship, marathon, injury, penalty shoot-out, locker room"
        ),
        "spy thriller": ("double agent, embassy, microfilm, defector, safe house, wiretap, cipher, border crossing"),
        "fairy-tale animation": (
            "talking fox, enchanted castle, brave princess, dragon egg, magic mirror, troll, wishing well, giant"
        ),
        "kitchen drama": (
            "head chef, restaurant kitchen, family recipe, food critic, "
            "bakery, tasting menu, apprentice cook, wine cellar"
        ),
    },
    "shop": {
        "camping gear": ("tent, sleeping bag, camp stove, head torch, rucksack, water filter, hammock, trekking pole"),
        "coffee equipment": (
            "espresso machine, burr grinder, pour-over cone, milk jug, French press, kettle, tamper, roasting drum"
        ),
        "garden tools": (
            "pruning shears, watering can, raised bed, compost bin, seed tray, wheelbarrow, hoe, greenhouse"
        ),
        "baby care": (
            "pushchair, baby monitor, feeding bottle, cot mattress, nappy bag, teething ring, bib, night light"
        ),
        "home workshop": ("cordless drill, circular saw, workbench, socket set, sander, clamp, spirit level, chisel"),
        "skin care": "face serum, sunscreen, clay mask, night cream, cleanser, lip balm, toner, body lotion",
        "board games": (
            "strategy game, dice tower, card deck, cooperative quest, puzzle box, chess set, trivia quiz, meeples"
        ),
        "cycling": "road bike, bike helmet, pannier, cycle lock, pedal, tyre lever, chain oil, handlebar bag",
        "pet supplies": (
            "dog lead, cat tree, aquarium, bird feeder, chew toy, litter tray, pet carrier, hamster wheel"
        ),
        "smart home": (
            "smart bulb, thermostat, doorbell camera, motion sensor, voice speaker, smart plug, robot vacuum, door lock"
        ),
        "watercolour painting": (
            "sable brush, paint pan, sketch pad, easel, palette, cold-press paper, masking fluid, ink pen"
        ),
        "winter clothing": ("down jacket, wool hat, thermal leggings, mittens, snow boots, scarf, fleece, ski goggles"),
    },
    "music": {
        "bebop jazz": ("saxophone, walking bass, ride cymbal, trumpet solo, jam session, swing, smoky club, scat"),
        "death metal": (
            "blast beat, growled vocal, distorted guitar, double bass drum, breakdown, tremolo riff, mosh pit, doom"
        ),
        "baroque": ("harpsichord, fugue, cello suite, organ toccata, concerto grosso, countertenor, cantata, minuet"),
        "techno": (
            "drum machine, acid bassline, warehouse rave, synth loop, "
            "four-on-the-floor kick, strobe, modular patch, remix"
        ),
        "bluegrass": ("banjo, fiddle, mandolin, mountain ballad, flatpicking, front porch, harmony trio, washboard"),
        "hip hop": "turntable, freestyle verse, boom-bap beat, sampler, block party, mixtape, rhyme, emcee",
        "bossa nova": (
            "nylon guitar, Rio evening, soft samba, whispered vocal, "
            "beach breeze, shaker, Portuguese lyric, lounge piano"
        ),
        "opera": "soprano aria, tenor, libretto, orchestra pit, chorus, overture, diva, tragic finale",
        "reggae": (
            "offbeat guitar, dub echo, bass groove, sound system, steel drum, island sun, roots lyric, one-drop beat"
        ),
        "ambient": "drone, field recording, tape hiss, slow pad, rain texture, sleep, meditation, reverb",
        "punk rock": (
            "three-chord riff, protest lyric, basement gig, fast drums, safety pin, garage demo, shout-along, zine"
        ),
        "Celtic folk": "tin whistle, uilleann pipes, reel, bodhran, sea shanty, harp, jig, Gaelic song",
    },
    "news": {
        "interest rates": ("central bank, inflation, bond yield, mortgage, rate cut, currency, deficit, lender"),
        "football transfers": (
            "striker, transfer fee, loan deal, club captain, agent, contract, goalkeeper, winter window"
        ),
        "climate policy": (
            "carbon tax, emissions target, wind farm, summit, heatwave, coal plant, treaty, solar subsidy"
        ),
        "archaeology": (
            "burial mound, Roman villa, clay tablet, excavation, shipwreck, cave painting, mummy, ancient coin"
        ),
        "cybersecurity": ("ransomware, data breach, phishing, zero-day flaw, password, hacker group, firewall, patch"),
        "public health": ("vaccine, hospital, outbreak, nurse, screening, antibiotic, waiting list, flu season"),
        "space missions": (
            "Mars rover, rocket launch, telescope, astronaut, lunar lander, satellite, splashdown, payload"
        ),
        "local transport": (
            "tram line, bus lane, station, road works, ticket price, cycle path, commuter, bridge repair"
        ),
        "elections": ("ballot, polling station, coalition, candidate debate, turnout, recount, manifesto, swing voter"),
        "education": (
            "exam results, teacher, school meal, university fee, classroom, scholarship, curriculum, homework"
        ),
        "art auctions": (
            "old master, auction house, collector, record bid, forged canvas, sculpture, provenance, gallery"
        ),
        "farming": "wheat harvest, dairy herd, drought, tractor, subsidy, orchard, pesticide, lambing",
    },
}

# fmt: off
MODIFIERS = (
    "Silent", "Golden", "Northern", "Little", "Last", "Second", "Hidden", "Bright",
    "Broken", "Modern", "Distant", "Honest", "Midnight", "Classic", "Early", "Open",
    "Perfect", "Restless", "Simple", "Winter", "Lucky", "Common", "Grand", "New",
)
# fmt: on

#: domain -> title, then the sentences an item's description is made of.
TEMPLATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "films": (
        "The {modifier} {thing} ({year})",
        (
            "A {topic} film about a {a} and a {b}.",
            "In this {topic} picture a {a} changes everything, and then there is the {b}.",
            "{topic} at its best: the {a}, the {b} and ninety tense minutes.",
        ),
    ),
    "shop": (
        "{modifier} {thing}, model {year}",
        (
            "{topic} for every day: goes well with a {a} or a {b}.",
            "Well-made {topic}, tested next to a {a} and a {b}.",
            "A favourite among people who buy {topic} such as the {a} and the {b}.",
        ),
    ),
    "music": (
        "{modifier} {thing} (LP, {year})",
        (
            "A {topic} record full of {a} and {b}.",
            "{topic} with {a} up front and {b} behind it.",
            "Recorded live: {topic}, {a}, {b}.",
        ),
    ),
    "news": (
        "{modifier} questions over {thing}, {year} report",
        (
            "What the {a} means for the {b}: our report on {topic}.",
            "{topic} explained, from the {a} to the {b}.",
            "The week in {topic}: a {a}, a {b} and what comes next.",
        ),
    ),
}

DOMAINS = tuple(TOPICS)
TOPIC_NAMES = tuple(topic for topics in TOPICS.values() for topic in topics)
TOPICS_PER_DOMAIN = len(TOPICS["films"])


def write_catalogue(main: np.ndarray, *, second: np.ndarray, rng: np.random.Generator) -> Catalogue:
    """One item per entry of `main`, (items,) indices into TOPIC_NAMES; `second` is its minor topic."""
    items = []
    written: dict[int, int] = {}
    orders = {topic: rng.permutation(8 * len(MODIFIERS)) for topic in sorted(set(main.tolist()))}
    for position, (topic, minor) in enumerate(zip(main.tolist(), second.tolist(), strict=True)):
        number = written.get(topic, 0)
        written[topic] = number + 1
        round_trip, slot = divmod(number, 8 * len(MODIFIERS))
        modifier, word = divmod(int(orders[topic][slot]), 8)
        items.append(_write_item(position, topic=topic, minor=minor, title=(modifier, word, round_trip), rng=rng))
    return Catalogue.from_rows(items)


def _write_item(
    position: int, *, topic: int, minor: int, title: tuple[int, int, int], rng: np.random.Generator
) -> Item:
    """Title, two sentences and tags of one item."""
    domain = DOMAINS[topic // TOPICS_PER_DOMAIN]
    pattern, sentences = TEMPLATES[domain]
    modifier, word, round_trip = title
    things, minor_things = _things(topic), _things(minor)
    others = [things[(word + 1 + int(step)) % 8] for step in rng.permutation(7)[:3]]
    year = int(rng.integers(1970, 2025))
    name = pattern.format(modifier=MODIFIERS[modifier], thing=_capital(things[word]), year=year)
    name += f", part {round_trip + 1}" if round_trip else ""
    sentence = sentences[int(rng.integers(len(sentences)))]
    first = _capital(sentence.format(topic=TOPIC_NAMES[topic], a=others[0], b=others[1]))
    hint = minor_things[int(rng.integers(8))]
    tags = (TOPIC_NAMES[topic], others[2], TOPIC_NAMES[minor])
    return Item(
        id=f"{domain}-{position:04d}",
        title=name,
        text=f"{name}. {first} With a touch of {TOPIC_NAMES[minor]}: {hint}. {', '.join(tags)}",
        tags=tags,
        domain=domain,
    )


def _things(topic: int) -> list[str]:
    domain = DOMAINS[topic // TOPICS_PER_DOMAIN]
    return TOPICS[domain][TOPIC_NAMES[topic]].split(", ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
