"""Make the preference pairs that stand in for the book's without a network.

    python tools/make_preference_sample.py   # rewrites llms_from_scratch/data/samples/...json

360 pairs: each of 60 questions, asked with each of six wishes about the form of the answer. The
chosen answer fulfils the wish, the rejected one says the same and does not. The key "rule" names a
rule of ``llms_from_scratch.preference_rules``, with which a program can tell them apart, and which
it can apply to the answer of a model too. The pairs of one question stay together, and the
questions are in random order, so that the questions of a test set are none of the training set.
The same code gives the same file, byte for byte.
"""

import json
import random
from pathlib import Path

from llms_from_scratch.data import SAMPLES
from llms_from_scratch.data.files import atomic_write

TARGET: Path = SAMPLES / "preference-data-synthetic.json"

# A question | the short answer | a sentence that answers | a second sentence about it; an indented
# line continues the one before it
QUESTIONS = """
What do bees make? | honey | Bees make honey from the nectar of flowers. |
    They store it in combs of wax.
Why do we sleep? | to recover | Sleep lets the body and the mind recover. |
    Most adults need about eight hours.
What is a river? | flowing water | A river is a stream of water that flows to the sea. |
    Many cities stand beside one.
What does a baker do? | bakes bread | A baker bakes bread and cakes. |
    The work often begins at night.
What is snow? | frozen water | Snow is frozen water that falls from clouds. |
    Each flake is made of ice crystals.
Why do birds fly south? | for food | Many birds fly south because they find more food there. |
    They return in spring.
What is a compass for? | finding north | A compass shows where north is. |
    Its needle is a small magnet.
What is tea made from? | leaves | Tea is made from the leaves of a shrub. |
    The leaves are dried first.
What is a desert? | dry land | A desert is land with very little rain. | Some of them are cold.
What do plants need? | light and water | Plants need light, water and air. |
    Roots bring the water up.
Why is exercise good? | it keeps us fit | Exercise keeps the heart and the muscles strong. |
    Even a walk helps.
What is a map? | a drawing of land | A map is a drawing that shows where places are. |
    The scale tells how far apart they are.
What is the moon? | a natural satellite | The moon is a ball of rock that circles the earth. |
    It has no air.
What does a doctor do? | heals people | A doctor helps people who are ill. |
    Some of them work in hospitals.
What is ice? | solid water | Ice is water that has become solid. | It floats on a lake.
Why do we cook food? | to make it safe | Cooking makes food safe and easy to eat. |
    It changes the taste too.
What is a library? | a place for books | A library is a place that lends books. |
    Many of them are free.
What is wind? | moving air | Wind is air that moves from place to place. | It can turn a mill.
What is bread made from? | flour and water | Bread is made from flour, water and yeast. |
    It is baked in an oven.
What is a whale? | a sea mammal | A whale is a large mammal that lives in the sea. |
    It breathes air.
Why do leaves fall? | to save water | Trees drop their leaves to save water in winter. |
    New ones grow in spring.
What is a bridge for? | crossing rivers | A bridge lets people cross a river or a road. |
    The first ones were made of wood.
What does a clock show? | the time | A clock shows the time of day. | Old ones have a pendulum.
What is glass made from? | sand | Glass is made from sand that is melted. | It can be used again.
What is a volcano? | a fiery mountain | A volcano is a mountain from which hot rock flows. |
    Many of them sleep for centuries.
Why do we wash hands? | to remove germs | Washing hands removes germs that make us ill. |
    Soap makes it work better.
What is a poem? | art in words | A poem is a text that plays with sound and meaning. |
    Some of them rhyme.
What does a farmer do? | grows food | A farmer grows plants and raises animals for food. |
    The seasons rule the work.
What is paper made from? | wood | Paper is made from the fibers of wood. |
    Old paper can be used again.
What is a shadow? | blocked light | A shadow is a dark shape where light is blocked. |
    It is long in the evening.
What is a spider? | an eight-legged animal | A spider is a small animal with eight legs. |
    Many of them build webs.
Why do cats purr? | they feel well | Cats often purr because they feel well. |
    Some purr when they are ill.
What is a king? | a ruler | A king is a man who rules a country. | His child often rules after him.
What is rain? | falling water | Rain is water that falls from clouds in drops. |
    It fills rivers and lakes.
What is an island? | land in water | An island is land with water all around it. |
    Some of them have no people.
What does a teacher do? | teaches | A teacher helps pupils to learn. | A good one asks questions.
What is cheese made from? | milk | Cheese is made from milk. | Some kinds ripen for years.
What is a planet? | a world round a star | A planet is a large body that circles a star. |
    The earth is one of eight here.
Why do we yawn? | nobody is sure | We yawn when we are tired or bored. | Others often join in.
What is a passport for? | travel | A passport proves who a traveler is. | It has a photograph.
What is a forest? | many trees | A forest is a large area full of trees. | Many animals live there.
What is soap for? | washing | Soap helps water to remove dirt. | It is made from oil or fat.
What does a pilot do? | flies planes | A pilot flies a plane from one airport to another. |
    Two of them sit in front.
What is a festival? | a celebration | A festival is a time when people celebrate together. |
    There is often music.
What is a magnet? | it attracts iron | A magnet is a thing that pulls iron toward it. |
    It has two poles.
Why do we need vitamins? | to stay healthy | The body needs vitamins to stay healthy. |
    Fruit has many of them.
What is a wheel for? | rolling | A wheel lets heavy things roll. | It is thousands of years old.
What is a cave? | a hole in rock | A cave is a hollow place inside rock. | Bats like to live there.
What is money for? | buying things | Money lets people buy what they need. |
    Coins came before notes.
What does a painter do? | paints | A painter makes pictures with color. | Some of them paint houses.
What is a tiger? | a big cat | A tiger is a large wild cat with stripes. | It likes to swim.
What is salt for? | taste | Salt gives food more taste. | It also keeps food fresh.
Why is the sky dark at night? | no sunlight | At night the sun is on the other side of us. |
    Stars can be seen then.
What is a museum? | a house of old things | A museum shows things from art or history. |
    Many of them have guides.
What is an echo? | returning sound | An echo is a sound that comes back from a wall. |
    Mountains have good ones.
What is wool made from? | hair of sheep | Wool is made from the hair of sheep. | It keeps us warm.
What is a bicycle? | a two-wheeler | A bicycle is a vehicle with two wheels and pedals. |
    It needs no fuel.
What does a nurse do? | cares for the ill | A nurse cares for people who are ill. |
    The work goes on all night.
What is a harbor for? | ships | A harbor is a place where ships are safe. | Goods are loaded there.
What is a dictionary? | a book of words | A dictionary explains what words mean. |
    Its words are in order.
"""

# A wish, the rule that checks it, and how the two answers are made from the parts of a question
WISHES = (
    ("Answer in one sentence.", "one_sentence", "{first}", "{first} {second} I hope this helps."),
    ("Write in capital letters only.", "upper_case", "{UPPER}", "{first}"),
    ("Use at most five words.", "five_words", "{Short}.", "{first} {second}"),
    ("Answer as a list of two points.", "two_points", "- {first}\n- {second}", "{first} {second}"),
    (
        "End with a question.",
        "ends_with_question",
        "{first} Would you like to know more?",
        "{first} {second}",
    ),
    (
        'Begin with the words "Thank you".',
        "begins_with_thanks",
        "Thank you for asking. {first}",
        "{first} {second}",
    ),
)


def main() -> None:
    lines = QUESTIONS.strip().replace("\n    ", " ").splitlines()
    random.Random(123).shuffle(lines)
    pairs = [pair for line in lines for pair in pairs_of(line)]
    with atomic_write(TARGET) as temporary:
        text = json.dumps(pairs, indent=1, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", newline="\n")
    print(f"{len(pairs)} pairs, {len(WISHES)} rules: {TARGET.name}")


def pairs_of(line: str) -> list[dict]:
    question, short, first, second = (part.strip() for part in line.split("|"))
    parts = {"first": first, "second": second, "UPPER": first.upper()}
    parts["Short"] = short[:1].upper() + short[1:]
    pairs = []
    for wish, rule, chosen, rejected in WISHES:
        chosen, rejected = chosen.format(**parts), rejected.format(**parts)
        instruction = f"{question} {wish}"
        pair = {"instruction": instruction, "input": "", "output": chosen}
        pairs.append(pair | {"chosen": chosen, "rejected": rejected, "rule": rule})
    return pairs


if __name__ == "__main__":
    main()
