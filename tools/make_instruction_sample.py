"""Make the instructions that stand in for the book's instruction data without a network.

    python tools/make_instruction_sample.py   # rewrites llms_from_scratch/data/samples/...json

1,100 entries with the keys "instruction", "input" (may be empty) and "output". Most of them have a
fourth one, "check", with which a program can judge an answer:

    {"match": "exact", "any_of": [...]}      the answer is one of these texts
    {"match": "contains", "any_of": [...]}   one of these words or phrases is in the answer

Case, spaces at both ends and a final full stop do not count; words are looked for as whole words.
The first half of this file are entries written by hand, the second half tables from which entries
are made. A fact of a table is asked about once only, so that no entry of a test set is one of the
training set in other words. The same code gives the same file, byte for byte.
"""

import json
import random
import re
from dataclasses import dataclass

from llms_from_scratch.data import SAMPLES
from llms_from_scratch.data.files import atomic_write

TARGET = SAMPLES / "instruction-data-synthetic.json"
NUM_ENTRIES = 1100

# --- written by hand
#
# One entry a line, "instruction | output" or "instruction | input | output"; an indented line
# continues the one before it, and <br> stands for a line break. What follows a ~ are the words or
# phrases of which a right answer contains one, with ; between them. If the question has such a word
# itself, the answer must be one of them, or the output: an echo is no answer.

EXPLAIN = """
Explain why the sky looks blue. | Air scatters blue light much more than red light, so blue light
    reaches our eyes from every part of the sky.
Why does ice float on water? | Water expands when it freezes, so ice is less dense than the liquid
    water below it.
Explain in one sentence why we have seasons. | The Earth's axis is tilted, so each half of the
    planet leans toward the Sun during one part of the year and away from it during another.
What causes a rainbow? | Raindrops bend and reflect sunlight and so split it into its colors.
Why do leaves change color in autumn? | Trees stop making green chlorophyll, and the yellow and
    orange pigments that were hidden behind it become visible.
Explain what a metaphor is. | A metaphor describes one thing as if it were another, for example
    "time is a thief", without the words "like" or "as".
What is the difference between a simile and a metaphor? | A simile compares two things with "like"
    or "as"; a metaphor says that one thing is the other.
Explain the word "recycling" to a child. | Recycling means that we turn old things, such as paper
    and bottles, into new things instead of throwing them away.
Why do we sneeze? | A sneeze blows dust or germs out of the nose before they reach the lungs.
What is photosynthesis? | Photosynthesis is the process by which plants use sunlight to make sugar
    from water and carbon dioxide; it releases oxygen.
Explain what a budget is. | A budget is a plan that says how much money comes in and what it will
    be spent on.
Why is the sea salty? | Rivers carry minerals from rocks into the sea; the water evaporates again,
    but the salt stays behind.
What does a thermometer measure? | A thermometer measures temperature. ~ temperature
What does a barometer measure? | A barometer measures air pressure. ~ pressure
Explain why metal feels colder than wood in the same room. | Metal conducts heat away from your
    hand faster than wood does, so it feels colder at the same temperature.
What is gravity? | Gravity is the force with which masses attract each other; it keeps us on the
    ground and the planets in their orbits.
Why do we see lightning before we hear thunder? | Light travels much faster than sound, so the
    flash reaches us first. ~ light
What is a synonym? | A synonym is a word that means the same, or nearly the same, as another word.
What is an antonym? | An antonym is a word with the opposite meaning of another word. ~ opposite
Explain what a verb is. | A verb is a word for an action or a state, such as "run" or "be".
Explain what an adverb does. | An adverb says how, when, where or to what degree something happens.
What is a noun? | A noun is a word that names a person, a place, a thing or an idea.
Define the word "habitat". | A habitat is the natural home of a plant or an animal.
Define the word "deadline". | A deadline is the latest time by which something must be done.
Define "nocturnal". | Nocturnal animals are active at night. ~ night
Define "herbivore". | A herbivore is an animal that eats only plants. ~ plants
Define "carnivore". | A carnivore is an animal that eats mainly meat. ~ meat
Define "fragile" in your own words. | Something fragile breaks easily.
What is an algorithm? | An algorithm is a list of exact steps that solves a problem.
What is a database? | A database is an organized collection of data that a computer can search and
    change quickly.
Explain what a prime number is. | A prime number is a whole number greater than one that can be
    divided without remainder only by one and by itself.
What is a leap year? | A leap year has 366 days: February gets a 29th day, to keep the calendar in
    step with the Sun. ~ 366; February; 29
What is inflation in economics? | Inflation is a general rise of prices over time, so that the same
    amount of money buys less.
Explain the purpose of a vaccine. | A vaccine trains the immune system to recognize a disease, so
    that the body can fight it quickly later.
Why should one wash one's hands before eating? | Washing removes germs that could make you ill.
What is the purpose of an index in a book? | An index lists topics with page numbers, so that
    readers can find them quickly.
What is a hypothesis? | A hypothesis is a possible explanation that can be tested.
Explain the term "supply and demand". | Prices tend to rise when people want more of a good than is
    offered, and to fall when more is offered than people want.
What does the heart do? | The heart pumps blood through the body.
What do the lungs do? | The lungs bring oxygen into the blood and remove carbon dioxide.
What is the job of the roots of a plant? | Roots hold a plant in the ground and take up water and
    minerals from the soil.
Why do cats purr? | Cats often purr when they are content, but they may also do so to calm
    themselves when they are hurt or afraid.
What is a palindrome? | A palindrome is a word or sentence that reads the same backward and
    forward, such as "level". ~ backward; backwards
What is an acronym? | An acronym is a word made of the first letters of other words.
What is alliteration? | Alliteration is the repetition of the same first sound in words that stand
    close together.
"""

LISTS = """
Name three primary colors of paint. | Red, yellow and blue.
List four things you need to bake a simple cake. | 1. Flour<br>2. Sugar<br>3. Eggs<br>4. Butter
Give three tips for sleeping better. | 1. Go to bed at the same time every day.<br>2. Keep the room
    dark and cool.<br>3. Put screens away an hour before bed.
Name the four seasons. | Spring, summer, autumn and winter.
Name three animals that can fly. | Eagle, bat and butterfly.
List three uses of a smartphone other than calling. | 1. Taking pictures<br>2. Finding the way<br>
    3. Listening to music
Name the five senses. | Sight, hearing, smell, taste and touch.
Give three reasons to read every day. | 1. It enlarges your vocabulary.<br>2. It teaches you about
    the world.<br>3. It helps you to relax.
Name two planets that are larger than the Earth. | Jupiter and Saturn.
List three kinds of renewable energy. | Solar power, wind power and hydropower.
Name three instruments that have strings. | Violin, guitar and harp.
List the steps for making a cup of tea. | 1. Boil water.<br>2. Put a tea bag into a cup.<br>3. Pour
    the water over it.<br>4. Wait three minutes and take the bag out.
Suggest three names for a small gray cat. | Smoky, Pebble and Misty.
Give three examples of mammals that live in the sea. | Whale, dolphin and seal.
Name three oceans. | The Pacific, the Atlantic and the Indian Ocean.
List three things to check before a long car trip. | 1. The pressure of the tires<br>2. The oil
    level<br>3. The lights
Name three punctuation marks that can end a sentence. | The period, the question mark and the
    exclamation mark.
Suggest three topics for a school essay about nature. | 1. Why bees matter<br>2. Life in a pond<br>
    3. How forests clean the air
List the colors of a traffic light from top to bottom. | Red, yellow, green.
Name three vegetables that grow underground. | Carrots, potatoes and beets.
Give two advantages of public transport. | It causes less pollution per person, and there is no
    need to look for a parking space.
Give two disadvantages of working from home. | It can be lonely, and work and free time are harder
    to separate.
List three words that rhyme with "light". | Night, bright, kite.
List three adjectives that describe a good friend. | Loyal, honest and kind.
Name three jobs for people who like animals. | Veterinarian, zookeeper and dog trainer.
Name three metals. | Iron, copper and gold.
List three games that need no equipment. | Tag, hide-and-seek and charades.
Name two gases in the air. | Nitrogen and oxygen.
Write a shopping list for a green salad. | Lettuce, cucumber, olive oil, lemon, salt.
List three ways to save water at home. | 1. Take shorter showers.<br>2. Repair dripping taps.<br>
    3. Turn the tap off while you brush your teeth.
"""

REWRITE = """
Make this sentence more polite. | Give me the report. | Could you please give me the report?
Make this request polite. | Be quiet. | Could you please be a little quieter?
Rewrite this sentence in formal English. | Gonna be late, sorry. | I apologize, but I will be late.
Rewrite in formal language. | The boss is mad about the numbers. | The manager is displeased with
    the figures.
Rewrite the sentence so that a child can understand it. | The precipitation will cease in the
    evening. | The rain will stop in the evening.
Use simpler words. | We must commence the meeting immediately. | We must start the meeting now.
Use simpler words. | He endeavored to locate his spectacles. | He tried to find his glasses.
Shorten the sentence without losing its meaning. | Due to the fact that it was raining, we stayed
    at home. | We stayed at home because it rained.
Make this sentence shorter. | At this point in time we do not have an answer. | We have no answer
    yet.
Remove the unneeded words. | The reason is because he was tired. | The reason is that he was tired.
Remove the repetition from this sentence. | The free gift is a gift that costs nothing. | The gift
    costs nothing.
Replace the cliche with plain words. | At the end of the day, we lost. | In the end, we lost.
Turn this headline into a full sentence. | Storm closes airport | A storm has closed the airport.
Turn the notes into one sentence. | meeting, Tuesday, ten o'clock, room 4 | The meeting is on
    Tuesday at ten o'clock in room 4.
Turn the notes into one sentence. | Anna - Lisbon - two weeks - work | Anna is in Lisbon for two
    weeks to work.
Join the two sentences with "because". | I closed the window. It was cold. | I closed the window
    because it was cold. ~ because it was cold
Join the two sentences with "but". | The soup was hot. I liked it. | The soup was hot, but I liked
    it. ~ but I liked it
Join the two sentences with "although". | He was tired. He kept walking. | Although he was tired,
    he kept walking. ~ although
Join the two sentences with "so". | The bus was late. We took a taxi. | The bus was late, so we
    took a taxi. ~ so we took a taxi
Combine the sentences using "who". | I have an aunt. She paints portraits. | I have an aunt who
    paints portraits. ~ who paints
Combine the sentences using "which". | This is the key. It opens the gate. | This is the key which
    opens the gate. ~ which opens
Split this into two sentences. | The museum is closed on Mondays but the park is open. | The museum
    is closed on Mondays. The park is open.
Rewrite the sentence with a stronger verb. | She walked quickly to the door. | She rushed to the
    door.
Rewrite the sentence with a stronger adjective. | The view was very good. | The view was superb.
Rewrite the sentence using a simile. | The lake was calm. | The lake was as calm as a mirror.
Rewrite the sentence using a simile. | He runs fast. | He runs like the wind.
Rewrite the sentence using a metaphor. | Her voice is soft. | Her voice is velvet.
Turn this direct speech into reported speech. | Tom said, "I am hungry." | Tom said that he was
    hungry. ~ he was hungry
Turn this into reported speech. | Maria said, "I like this song." | Maria said that she liked that
    song. ~ she liked
Turn this reported speech into direct speech. | Ben said that he was ready. | Ben said, "I am
    ready." ~ I am ready; I'm ready
Change the sentence from singular to plural. | The child has a new toy. | The children have new
    toys. ~ children have
Change the sentence from plural to singular. | The geese are in the field. | The goose is in the
    field. ~ goose is
Rewrite the sentence from the point of view of "I". | She lost her keys. | I lost my keys. ~ I lost
    my keys
Rewrite the sentence with "we" as the subject. | He cleans his room. | We clean our room. ~ we
    clean our
Rewrite the sentence in the present tense. | They lived near the river. | They live near the river.
    ~ they live
Rewrite the sentence in the past tense. | We eat lunch at noon. | We ate lunch at noon. ~ we ate
Replace "said" with a more precise verb. | "Watch out!" she said. | "Watch out!" she shouted.
Replace the word "nice" with a better one. | We had a nice holiday. | We had a wonderful holiday.
Put the words in the right order. | the / sleeps / cat / sofa / on / the | The cat sleeps on the
    sofa. ~ The cat sleeps on the sofa
Put the words in the right order. | never / late / is / she | She is never late. ~ She is never
    late
Put the words in the right order. | you / do / live / where | Where do you live? ~ Where do you
    live
Complete the proverb. | Better late than ... | Better late than never. ~ never
Complete the proverb. | The early bird catches ... | The early bird catches the worm. ~ worm
Complete the proverb. | Actions speak louder than ... | Actions speak louder than words. ~ words
Complete the proverb. | Don't judge a book by its ... | Don't judge a book by its cover. ~ cover
Complete the proverb. | Practice makes ... | Practice makes perfect. ~ perfect
Complete the proverb. | A picture is worth a thousand ... | A picture is worth a thousand words. ~
    words
Complete the simile. | as busy as a ... | as busy as a bee
Complete the simile. | as light as a ... | as light as a feather
Complete the simile. | as blind as a ... | as blind as a bat
"""

GRAMMAR = """
Correct the grammar. | She don't like coffee. | She doesn't like coffee. ~ doesn't; does not
Correct the grammar. | He have two sisters. | He has two sisters. ~ he has
Correct the grammar. | There is many cars on the road. | There are many cars on the road. ~ there
    are
Correct the grammar. | I seen that film before. | I have seen that film before. ~ have seen; saw;
    I've seen
Correct the grammar. | Me and Paul went home. | Paul and I went home. ~ Paul and I
Correct the grammar. | The dogs barks all night. | The dogs bark all night. ~ dogs bark
Correct the mistake in the sentence. | Its raining outside. | It's raining outside. ~ It's; it is
Correct the mistake in the sentence. | Your the best teacher. | You're the best teacher. ~ you're;
    you are
Correct the mistake in the sentence. | They forgot there tickets. | They forgot their tickets. ~
    their
Correct the mistake in the sentence. | She is taller then me. | She is taller than me. ~ than
Correct the mistake in the sentence. | I could of helped. | I could have helped. ~ could have
Correct the mistake in the sentence. | He is more faster than you. | He is faster than you. ~ is
    faster
Correct the mistake in the sentence. | We was at the beach. | We were at the beach. ~ we were
Correct the mistake in the sentence. | This are my shoes. | These are my shoes. ~ these
Correct the mistake in the sentence. | She sings beautiful. | She sings beautifully. ~ beautifully
Correct the mistake in the sentence. | He didn't went to school. | He didn't go to school. ~ didn't
    go; did not go
Correct the mistake in the sentence. | I have less friends than you. | I have fewer friends than
    you. ~ fewer
Correct the mistake in the sentence. | The news are good. | The news is good. ~ news is
Choose the right word: "affect" or "effect". | The medicine had no ... | The medicine had no
    effect. ~ effect
Choose the right word: "affect" or "effect". | Noise can ... your sleep. | Noise can affect your
    sleep. ~ affect
Choose the right word: "lose" or "loose". | Don't ... your ticket. | Don't lose your ticket. ~ lose
Choose the right word: "lose" or "loose". | This screw is ... | This screw is loose. ~ loose
Choose the right word: "who" or "whom". | ... is at the door? | Who is at the door? ~ who
Choose the right word: "a" or "an". | She waited for ... hour. | She waited for an hour. ~ an hour
Choose the right word: "a" or "an". | He goes to ... university. | He goes to a university. ~ a
    university
Choose the right word: "much" or "many". | How ... apples are left? | How many apples are left? ~
    many
Choose the right word: "much" or "many". | There isn't ... milk. | There isn't much milk. ~ much
Choose the right word: "since" or "for". | I have lived here ... 2010. | I have lived here since
    2010. ~ since 2010
Choose the right word: "since" or "for". | She has been ill ... three days. | She has been ill for
    three days. ~ for three
Fill in the preposition. | The picture hangs ... the wall. | The picture hangs on the wall. ~ on
    the wall
Fill in the preposition. | She is good ... chess. | She is good at chess. ~ at chess
Fill in the preposition. | He was born ... July. | He was born in July. ~ in July
Fill in the preposition. | We depend ... the weather. | We depend on the weather. ~ on the; upon
    the
Find the verb in the sentence. | The old clock stopped at noon. | The verb is "stopped". ~ stopped
Find the verb in the sentence. | My brother repairs bicycles. | The verb is "repairs". ~ repairs
Find the adjective in the sentence. | A gentle wind moved the leaves. | The adjective is "gentle".
    ~ gentle
Find the adjective in the sentence. | They sat in a narrow boat. | The adjective is "narrow". ~
    narrow
Find the adverb in the sentence. | He carefully opened the box. | The adverb is "carefully". ~
    carefully
Find the subject of the sentence. | Yesterday my neighbor bought a car. | The subject is "my
    neighbor". ~ my neighbor
Find the object of the sentence. | The girl reads a letter. | The object is "a letter". ~ a letter
Which word is the pronoun? | They arrived after dinner. | The pronoun is "they". ~ they
Which word is the conjunction? | I wanted to go, but it rained. | The conjunction is "but". ~ but
Add the missing commas. | We bought apples pears and plums. | We bought apples, pears, and plums. ~
    apples, pears
Add the missing apostrophe. | The cats tail is long. | The cat's tail is long. ~ cat's
Add the missing quotation marks. | He asked, Where are you? | He asked, "Where are you?"
Name the tense of the sentence. | She will call you. | The sentence is in the future tense. ~
    future
Name the tense of the sentence. | They danced all night. | The sentence is in the past tense. ~
    past
Name the tense of the sentence. | He lives in Oslo. | The sentence is in the present tense. ~
    present
"""

WRITE = """
Write a sentence with the word "lantern". | The old man lit a lantern and walked into the fog.
Write a sentence with the word "hesitate". | Do not hesitate to ask if you need help.
Write a sentence with the word "bridge". | The bridge sways a little when a train crosses it.
Write a sentence with the word "curious". | The curious puppy looked into every bag.
Write a sentence with the word "barely". | I could barely see the road.
Write a sentence that contains both "rain" and "smile". | The rain could not wash the smile from
    her face.
Write a question about the weather. | Will it be sunny tomorrow?
Write a question for a job interview. | Which project are you most proud of, and why?
Write a short thank-you note for a birthday present. | Thank you for the lovely scarf! It is warm
    and exactly my color.
Write a one-sentence apology for arriving late. | I am sorry that I am late; my train stopped on
    the way.
Write a friendly greeting for an email to a colleague. | Hi Sam, I hope you had a good weekend.
Write a polite closing line for a letter. | I look forward to hearing from you.
Write a reminder for a dentist's appointment. | Reminder: your appointment with the dentist is on
    Thursday at 3 p.m.
Write a short advertisement for a used bicycle. | For sale: blue city bicycle, seven gears, new
    tires, 80 dollars.
Write the first sentence of a ghost story. | Every night at two, somebody who was not there closed
    the kitchen door.
Write the first sentence of a story that takes place on a ship. | On the third morning the captain
    noticed that all the gulls had gone.
Describe a lemon in one sentence. | A lemon is a yellow, sour citrus fruit.
Describe snow to someone who has never seen it. | Snow is cold and soft; it falls in white flakes
    and makes the world quiet.
Describe an umbrella without using its name. | It is a folding roof on a stick that keeps you dry
    when it rains.
Describe the sound of the sea. | The waves roll in with a low roar and draw back with a hiss.
Write a tip for someone who learns a language. | Practice a little every day instead of a lot once
    a week.
Write a slogan for a bakery. | Warm bread, warm hearts.
Write a slogan for a library. | A thousand worlds, one card.
Write a title for a text about bees. | Small Wings, Big Work
Write a two-line poem about the moon. | The moon looks in, a silver guest,<br>and tells the tired
    town to rest.
Write a two-line poem about a cat. | The cat has claimed the warmest chair,<br>and dares you now to
    sit down there.
Write a riddle about a shadow. | I follow you in the sun and leave you in the dark. What am I?
Give an example of alliteration. | Seven silent swans swam south.
Give an example of personification. | The wind whispered through the trees.
Give an example of a rhetorical question. | Who would not like a little peace?
Write a simple rule for a classroom. | Raise your hand before you speak.
Give advice to somebody who is nervous before a talk. | Breathe slowly, speak to one friendly face,
    and know your first sentence by heart.
Write a weather forecast for a rainy day. | It will rain all day, with strong winds in the evening;
    take an umbrella.
Write instructions for watering a cactus in one sentence. | Water the cactus only when the soil is
    completely dry.
Write an out-of-office message. | I am away until Monday and will answer your message then.
"""

SUMMARIZE = """
Summarize the text in one sentence. | The town built a new library. It has a room for children and
    a garden on the roof. Many people come every day. | The town's new library, with a children's
    room and a roof garden, is very popular.
Summarize the text in one sentence. | Bees visit flowers to collect nectar. Pollen sticks to them
    and is carried to the next flower. Without this, many plants could not make seeds. | By
    carrying pollen from flower to flower, bees help plants make seeds.
Summarize the message in a few words. | Hi Jo, the train is an hour late, so please start the
    dinner without me and keep me a plate. | The writer is late; start dinner without them.
Give the main idea of the text. | Walking costs nothing, needs no training and keeps the heart
    healthy. Half an hour a day is enough. | Walking is an easy way to stay healthy.
Who is the text about? | Lena fixes watches. Her shop is next to the bakery. | The text is about
    Lena. ~ Lena
Where is the shop? | Lena fixes watches. Her shop is next to the bakery. | The shop is next to the
    bakery. ~ bakery
When does the train leave? | The train to Bern leaves at 8:15 from platform 3. | The train leaves
    at 8:15. ~ 8:15
From which platform does the train leave? | The train to Ghent leaves at 9:40 from platform 7. | It
    leaves from platform 7. ~ 7; seven
How many eggs are needed? | Mix two eggs with a cup of flour and some milk. | Two eggs are needed.
    ~ two; 2
What color is the door? | The house with the green door is mine; my brother lives in the red one. |
    The door is green. ~ green
What did the boy forget? | On Monday the boy left his umbrella on the bus. | He forgot his
    umbrella. ~ umbrella
Who won the race? | Ida was second; Noor came in a minute before her and won. | Noor won the race.
    ~ Noor
Extract the date from the text. | The contract was signed in Rome on 4 May 2019. | 4 May 2019 ~ 4
    May 2019; May 4, 2019
Extract the name of the city. | She opened her first bakery in Lyon with her sister. | Lyon ~ Lyon
Extract the price. | The blue chair costs 45 dollars, delivery included. | 45 dollars ~ 45
Extract the two names. | Karim and Olga met at a chess club. | Karim and Olga ~ Olga
Is the following statement a fact or an opinion? | Water boils at 100 degrees Celsius at sea level.
    | It is a fact. ~ fact
Is the following statement a fact or an opinion? | Winter is the best season. | It is an opinion. ~
    opinion
Is the following statement a fact or an opinion? | Spiders have eight legs. | It is a fact. ~ fact
Is the following statement a fact or an opinion? | Jazz is boring. | It is an opinion. ~ opinion
"""

IDIOMS = """
break the ice | to make people feel at ease when they meet ~ ease; relaxed; start
a piece of cake | something very easy ~ easy
once in a blue moon | very rarely ~ rarely; seldom
under the weather | slightly ill ~ ill; sick; unwell
spill the beans | to reveal a secret ~ secret
cost an arm and a leg | to be very expensive ~ expensive
hit the sack | to go to bed ~ bed; sleep
let the cat out of the bag | to give away a secret by mistake ~ secret
bite off more than you can chew | to take on more than you can do
when pigs fly | never ~ never
in hot water | in trouble ~ trouble
on cloud nine | extremely happy ~ happy
"""

HAND_WRITTEN = (EXPLAIN, LISTS, REWRITE, GRAMMAR, WRITE, SUMMARIZE)

# --- made from tables
#
# In a table, entries are separated by commas, the fields of an entry by colons, and / separates
# alternatives: the first is used in the answer, the others are right as well.


@dataclass(frozen=True)
class Task:
    """Ways to ask about the entries of a table, and how to check the answers."""

    fields: str
    table: str
    phrasings: str  # "instruction | input | output", a field in capitals starts with a capital
    match: str = "contains"  # how to look for field b in an answer


WORD_TASKS = (
    Task(
        "a b",
        """hot:cold, early:late, deep:shallow, brave:cowardly, empty:full, generous:stingy/selfish,
        ancient:modern, noisy:quiet/silent, rough:smooth, accept:refuse/reject, arrive:leave/depart,
        increase:decrease/reduce, succeed:fail, remember:forget, build:destroy/demolish,
        expand:contract/shrink, victory:defeat, friend:enemy, entrance:exit, heavy:light,
        sharp:blunt/dull, wet:dry, polite:rude/impolite, strong:weak, rich:poor, wide:narrow,
        tight:loose, sweet:bitter/sour, cheap:expensive, clean:dirty, thick:thin, lazy:diligent,
        humble:proud/arrogant, temporary:permanent, public:private, guilty:innocent, rare:common,
        borrow:lend, question:answer, winter:summer, morning:evening, above:below, inside:outside,
        before:after, always:never, optimist:pessimist, maximum:minimum, major:minor, north:south,
        love:hate, asleep:awake, artificial:natural, simple:complicated/complex,
        flexible:rigid/stiff, dangerous:safe, transparent:opaque, voluntary:compulsory/mandatory,
        familiar:strange/unfamiliar, create:destroy, attack:defend, ascend:descend, import:export,
        admit:deny, profit:loss""",
        """What is the opposite of '{a}'? | | The opposite of '{a}' is '{b}'.
        Give an antonym of the word. | {A} | {B}
        Name a word that means the opposite of '{a}'. | | {B}
        Find an antonym for '{a}'. | | An antonym for '{a}' is '{b}'.
        Which word has the opposite meaning? | {a} | The opposite of '{a}' is '{b}'.""",
    ),
    Task(
        "a b",
        """glad:happy/pleased/cheerful/joyful, big:large/huge/great, begin:start/commence,
        quick:fast/rapid/swift, clever:smart/bright/intelligent, angry:mad/furious/cross,
        sad:unhappy/sorrowful, tiny:small/little/minute, error:mistake, gift:present,
        hard:difficult/tough, silent:quiet/noiseless, shut:close, choose:select/pick,
        assist:help/aid, purchase:buy, respond:reply/answer, wealthy:rich, tired:weary/exhausted,
        strange:odd/unusual/weird/peculiar, famous:well-known/renowned, afraid:scared/frightened,
        beautiful:lovely/pretty/gorgeous, important:significant/essential/crucial, repair:mend/fix,
        collect:gather, vanish:disappear, permit:allow, needed:required/necessary,
        journey:trip/voyage, goal:aim/target/objective, task:job/duty, concept:idea/notion,
        sick:ill/unwell, end:finish/conclusion/stop, entire:whole/complete, correct:right/accurate,
        nearly:almost, often:frequently, maybe:perhaps/possibly, also:too/additionally, stone:rock,
        couch:sofa, autumn:fall, physician:doctor, automobile:car, ship:boat/vessel,
        forest:woods/wood, shout:yell/scream, jump:leap, observe:watch/notice,
        enormous:huge/gigantic/immense, fearless:brave/courageous/bold, annual:yearly""",
        """Give a synonym for '{a}'. | | A synonym for '{a}' is '{b}'.
        Find a word with the same meaning. | {a} | {B}
        What is another word for '{a}'? | | Another word for '{a}' is '{b}'.
        Replace the word by a synonym. | {A} | {B}
        Name a word that means nearly the same as '{a}'. | | {B}""",
    ),
    Task(
        "a b",
        """go:went, see:saw, take:took, write:wrote, bring:brought, think:thought, buy:bought,
        teach:taught, catch:caught, swim:swam, sing:sang, drink:drank, begin:began, fly:flew,
        grow:grew, know:knew, throw:threw, draw:drew, break:broke, speak:spoke, choose:chose,
        freeze:froze, drive:drove, ride:rode, rise:rose, give:gave, forget:forgot, find:found,
        hold:held, keep:kept, sleep:slept, feel:felt, leave:left, lose:lost, build:built, send:sent,
        spend:spent, tell:told, sell:sold, stand:stood, understand:understood, eat:ate, fall:fell,
        run:ran, win:won, hide:hid, walk:walked, play:played, help:helped, open:opened, jump:jumped,
        clean:cleaned, look:looked, paint:painted, laugh:laughed, close:closed, dance:danced,
        invite:invited, carry:carried, study:studied, stop:stopped, plan:planned""",
        """What is the past tense of '{a}'? | | The past tense of '{a}' is '{b}'.
        Give the simple past of the verb. | {a} | {b}
        Put the verb into the past tense. | to {a} | {b}
        Write the past form of '{a}'. | | {B}""",
    ),
    Task(
        "a b",
        """child:children, mouse:mice, foot:feet, tooth:teeth, goose:geese, man:men, woman:women,
        person:people, ox:oxen, leaf:leaves, knife:knives, wolf:wolves, shelf:shelves, half:halves,
        life:lives, potato:potatoes, hero:heroes, city:cities, baby:babies, story:stories,
        country:countries, family:families, box:boxes, bus:buses, dish:dishes, church:churches,
        class:classes, brush:brushes, sheep:sheep, deer:deer, crisis:crises, analysis:analyses,
        phenomenon:phenomena, table:tables, garden:gardens, window:windows, teacher:teachers,
        river:rivers, key:keys, boy:boys, day:days, flower:flowers, lamp:lamps, ticket:tickets""",
        """What is the plural of '{a}'? | | The plural of '{a}' is '{b}'.
        Give the plural of the noun. | {a} | {b}
        Write this noun in the plural. | one {a} | two {b}
        Turn the singular into the plural. | {a} | {B}""",
    ),
    Task(
        "a b c",
        """good:better:best, bad:worse:worst, far:farther/further:farthest/furthest,
        tall:taller:tallest, large:larger:largest, happy:happier:happiest, easy:easier:easiest,
        hot:hotter:hottest, thin:thinner:thinnest, kind:kinder:kindest, heavy:heavier:heaviest,
        busy:busier:busiest, wide:wider:widest, young:younger:youngest, noisy:noisier:noisiest,
        flat:flatter:flattest, brave:braver:bravest, dirty:dirtier:dirtiest, cheap:cheaper:cheapest,
        sad:sadder:saddest""",
        """Give the comparative of '{a}'. | | The comparative of '{a}' is '{b}'.
        Form the comparative of the adjective. | {a} | {b}
        Compare two things: use the right form of the adjective. | {a} | {b}""",
    ),
    Task(
        "a b",
        """deep:deepest, old:oldest, fast:fastest, pretty:prettiest, lucky:luckiest,
        strong:strongest, safe:safest, big:biggest, little:least, funny:funniest, quiet:quietest,
        rich:richest, friendly:friendliest, short:shortest, wet:wettest, cold:coldest""",
        """Give the superlative of '{a}'. | | The superlative of '{a}' is '{b}'.
        Form the superlative of the adjective. | {a} | {b}""",
    ),
    Task(
        # In _wrong_right_, the first is the spelling mistake, the second its correction
        "a b",
        """re_ci_cei_ve, separ_e_a_te, defin_a_i_tely, ac__c_ommodate, occa_ss_s_ion, _n_kn_owledge,
        nec_c__essary, begin__n_ing, bel_ei_ie_ve, fr_ei_ie_nd, w_ie_ei_rd, until_l__, tom_m__orrow,
        gover__n_ment, envir_o_on_ment, gramm_e_a_r, calend_e_a_r, cem_a_e_tery, emba__r_rass,
        excell_a_e_nt, exist_a_e_nce, forei_n_gn_, hum_e_o_rous, independ_a_e_nt, lib__r_ary,
        misp__s_ell, neighb_e_o_r, para_l_ll_el, po_s_ss_ession, prefer__r_ed, privil_i_e_ge,
        rest_ura_aura_nt, rhy_t_th_m, sinc__e_rely, surpri_ce_se_, t_ru_hrou_gh, Wedn__e_sday,
        writ_t__ing, beauti_full_ful_, suc__c_essful, di_ss_s_appear, int__e_resting, peop_el_le_,
        b_ea_e_cause, diff__e_rent, favor_a_i_te, Feb__r_uary, g__u_arantee, h_ie_ei_ght,
        im__m_ediately, ki_t_tc_hen, la_n_ng_uage, med_e_i_cine, min_i_u_te, nin__e_ty,
        q_i_u_estion, recom__m_end, s__c_hedule, t__w_elfth, vac_c__uum, for__e_ver,
        arg_ue_u_ment""",
        """Correct the spelling. | {a} | {b}
        Fix the spelling mistake. | {a} | The correct spelling is '{b}'.
        The word '{a}' is misspelled. Spell it correctly. | | {b}
        Is this word spelled correctly? | {a} | No, the correct spelling is '{b}'.
        How is the word '{a}' spelled correctly? | | It is spelled '{b}'.""",
    ),
    Task(
        "a b",
        """France:Paris, Italy:Rome, Spain:Madrid, Portugal:Lisbon, Germany:Berlin, Austria:Vienna,
        Poland:Warsaw, Greece:Athens, Sweden:Stockholm, Norway:Oslo, Finland:Helsinki,
        Denmark:Copenhagen, Ireland:Dublin, Iceland:Reykjavik, Hungary:Budapest, Romania:Bucharest,
        Bulgaria:Sofia, Croatia:Zagreb, Slovenia:Ljubljana, Belgium:Brussels, Japan:Tokyo,
        China:Beijing, India:New Delhi, Thailand:Bangkok, Vietnam:Hanoi, Mongolia:Ulaanbaatar,
        Nepal:Kathmandu, Pakistan:Islamabad, Bangladesh:Dhaka, the Philippines:Manila, Iran:Tehran,
        Iraq:Baghdad, Jordan:Amman, Lebanon:Beirut, Turkey:Ankara, Egypt:Cairo, Morocco:Rabat,
        Tunisia:Tunis, Algeria:Algiers, Kenya:Nairobi, Ethiopia:Addis Ababa, Ghana:Accra,
        Nigeria:Abuja, Senegal:Dakar, Uganda:Kampala, Rwanda:Kigali, Canada:Ottawa, the United
        States:Washington, Mexico:Mexico City, Cuba:Havana, Brazil:Brasília/Brasilia,
        Argentina:Buenos Aires, Chile:Santiago, Peru:Lima, Colombia:Bogotá/Bogota, Ecuador:Quito,
        Uruguay:Montevideo, Venezuela:Caracas, Australia:Canberra, New Zealand:Wellington""",
        """What is the capital of {a}? | | The capital of {a} is {b}.
        Name the capital of the country. | {A} | {b}
        Which city is the capital of {a}? | | {b} is the capital of {a}.
        Answer with one name: what is the capital of {a}? | | {b}""",
    ),
    Task(
        "a b",
        """the Nile:Africa, Mount Everest:Asia, the Amazon River:South America, the Sahara:Africa,
        the Alps:Europe, the Gobi Desert:Asia, Lake Victoria:Africa, the Danube:Europe, the
        Mississippi River:North America, Kilimanjaro:Africa, the Andes:South America, the
        Ganges:Asia, the Grand Canyon:North America, the Rhine:Europe, Lake Titicaca:South America,
        Mount Fuji:Asia, the Pyrenees:Europe""",
        """On which continent can one find {a}? | | One can find {a} in {b}.
        Name the continent. | {A} | {b}""",
    ),
    Task(
        "a b",
        """hydrogen:H, oxygen:O, carbon:C, nitrogen:N, sodium:Na, potassium:K, iron:Fe, gold:Au,
        silver:Ag, copper:Cu, lead:Pb, tin:Sn, zinc:Zn, helium:He, neon:Ne, calcium:Ca, chlorine:Cl,
        mercury:Hg, magnesium:Mg, aluminum:Al, silicon:Si, sulfur:S, nickel:Ni, platinum:Pt,
        uranium:U, iodine:I""",
        """What is the chemical symbol for {a}? | | The chemical symbol for {a} is {b}.
        Give the chemical symbol of the element. | {A} | {b}""",
        match="exact",
    ),
    Task(
        "a b",
        """Hamlet:William Shakespeare/Shakespeare, Emma:Jane Austen/Austen, Oliver Twist:Charles
        Dickens/Dickens, Moby-Dick:Herman Melville/Melville, Frankenstein:Mary Shelley/Shelley, War
        and Peace:Leo Tolstoy/Tolstoy, Don Quixote:Miguel de Cervantes/Cervantes, The Time
        Machine:H. G. Wells/Wells, Dracula:Bram Stoker/Stoker, Jane Eyre:Charlotte
        Brontë/Brontë/Bronte, Crime and Punishment:Fyodor Dostoevsky/Dostoevsky/Dostoyevsky,
        Treasure Island:Robert Louis Stevenson/Stevenson, The Odyssey:Homer, Faust:Johann Wolfgang
        von Goethe/Goethe, Les Misérables:Victor Hugo/Hugo, Ulysses:James Joyce/Joyce, Around the
        World in Eighty Days:Jules Verne/Verne, Madame Bovary:Gustave Flaubert/Flaubert, The Age of
        Innocence:Edith Wharton/Wharton, Walden:Henry David Thoreau/Thoreau""",
        """Who wrote '{a}'? | | '{a}' was written by {b}.
        Name the author of the work. | {a} | {b}""",
    ),
    Task(
        "a b",
        """dog:puppy, cat:kitten, cow:calf, horse:foal, sheep:lamb, hen:chick, pig:piglet, goat:kid,
        duck:duckling, goose:gosling, swan:cygnet, bear:cub, deer:fawn, kangaroo:joey, frog:tadpole,
        eagle:eaglet, owl:owlet""",
        """What is a young {a} called? | | It is called '{b}'.
        Name the young of this animal. | {a} | {b}""",
    ),
    Task(
        "a b",
        """bee:hive/nest, bird:nest, spider:web, lion:den, rabbit:burrow/warren, horse:stable,
        dog:kennel, beaver:lodge, wasp:nest, bear:den/cave""",
        """What is the home of a {a} called? Use one word. | | {B}
        Where does this animal live? Use one word. | {a} | {b}""",
    ),
    Task(
        "a b",
        """NASA:National Aeronautics and Space Administration, UN:United Nations, EU:European Union,
        DNA:deoxyribonucleic acid, CPU:central processing unit, GPU:graphics processing unit,
        RAM:random access memory, USB:Universal Serial Bus, PDF:Portable Document Format,
        ATM:automated teller machine/automatic teller machine, GDP:gross domestic product, WHO:World
        Health Organization, AI:artificial intelligence, LLM:large language model, URL:uniform
        resource locator, FAQ:frequently asked questions, ASAP:as soon as possible,
        LED:light-emitting diode, VIP:very important person, GPS:Global Positioning System, DIY:do
        it yourself, CEO:chief executive officer""",
        """What does '{a}' stand for? | | '{a}' stands for '{b}'.
        Expand the abbreviation. | {a} | {b}""",
    ),
    Task(
        "a b",
        """do not:don't, cannot:can't, will not:won't, it is:it's, they are:they're, we have:we've,
        I am:I'm, should not:shouldn't, she will:she'll, is not:isn't, you are:you're, has
        not:hasn't, were not:weren't, let us:let's, did not:didn't, who is:who's""",
        """What is the contraction of "{a}"? | | The contraction of "{a}" is "{b}".
        Shorten with an apostrophe. | {a} | {b}""",
    ),
    Task(
        "a b",
        """a person who bakes bread:baker, a person who writes books:author/writer, a person who
        treats teeth:dentist, a person who flies a plane:pilot, a person who designs
        buildings:architect, a person who treats sick animals:veterinarian/vet, a person who repairs
        water pipes:plumber, a person who cuts hair:hairdresser/barber, a person who studies the
        stars:astronomer, a person who plays the piano:pianist, a person who sells flowers:florist,
        a place where books are lent:library, a place where films are shown:cinema/movie theater, a
        place where bread is sold:bakery, a place where planes land:airport, a place where money is
        kept:bank, a tool for driving nails:hammer, a tool for cutting paper:scissors, a tool for
        telling north:compass, an instrument for looking at stars:telescope, a shape with three
        sides:triangle, a shape with six sides:hexagon, a shape with eight sides:octagon, a doctor
        for children:pediatrician""",
        """What do we call {a}? | | {B}
        Name it in one word. | {A} | {B}
        Which word means '{a}'? | | The word is '{b}'.""",
    ),
    Task(
        "a b",
        """Tuesday:Wednesday, Friday:Saturday, Sunday:Monday, March:April, August:September,
        December:January, May:June, spring:summer, summer:autumn/fall""",
        """What comes directly after {a}? | | {B}
        Name the next one in the calendar. | {A} | {B}""",
    ),
)

# A question, the answer in a sentence, and what is to be classified under each label
LABELS = (
    (
        "Is this word a noun, a verb or an adjective?",
        "It is {article} {label}.",
        """noun: kitchen, river, happiness, farmer, music, mountain, courage, curtain, freedom
        verb: believe, explain, arrive, decide, belong, forgive, deliver, improve, listen, destroy
        adjective: useful, gentle, enormous, careful, ancient, wooden, honest, dangerous, silly""",
    ),
    (
        "Classify the item as an animal, a plant or a mineral.",
        "It is {article} {label}.",
        """animal: salmon, sparrow, camel, lizard, octopus, moth, badger, hamster, oyster
        plant: oak, tulip, fern, bamboo, rose, clover, thistle, cactus, ivy
        mineral: quartz, gold, diamond, graphite, salt, talc, gypsum, calcite, topaz""",
    ),
    (
        "Is the item food, clothing or furniture?",
        "It is {label}.",
        """food: bread, cheese, noodles, soup, yogurt, rice
        clothing: scarf, jacket, sock, shirt, glove, skirt, sweater
        furniture: armchair, wardrobe, desk, bookcase, stool, sofa""",
    ),
    (
        "Classify the review as positive or negative.",
        "The review is {label}.",
        """positive: I loved every minute of it.; The food was fresh and the staff were kind.;
        What a wonderful book!; It works perfectly and was easy to set up.;
        The best holiday we ever had.; A charming film with a great cast.;
        The room was clean and the view was lovely.; I would buy it again at once.;
        The new chair is very comfortable.; She is a brilliant singer.
        negative: It broke after two days.; The soup was cold and the waiter was rude.;
        I have never been so bored.; A waste of money.; The room smelled of smoke.;
        The plot makes no sense at all.; Nobody answered my complaint.;
        The worst phone I ever had.; The instructions are impossible to understand.;
        We waited an hour and left hungry.""",
    ),
    (
        "Is the sentence a statement, a question or a command?",
        "It is {article} {label}.",
        """statement: The shop opens at nine.; My uncle grows roses.; It rained all night.;
        We moved here in June.; The bridge is very old.
        question: Where is the station?; Can you swim?; Who painted this picture?;
        Why are you laughing?; Is there any tea left?
        command: Close the window.; Wait for me.; Turn left at the corner.; Wash your hands.;
        Put the box on the table.""",
    ),
    (
        "Is the sentence in the active or in the passive voice?",
        "The sentence is in the {label} voice.",
        """active: The storm damaged the roof.; Our team won the match.; A dog chased the postman.;
        The nurse checks the list.; Two boys carried the piano.; The wind opened the door.
        passive: The roof was repaired last week.; The letters are sorted by a machine.;
        The song was written in 1970.; Breakfast is served at eight.; The thief was caught.;
        The windows are cleaned every month.""",
    ),
)

ODD_ONE_OUT = """
apple banana pear hammer, dog cat horse chair, red blue green seven, Monday Friday Sunday June,
spoon fork knife cloud, rose tulip daisy shoe, piano violin flute lamp, car bus train carrot, shirt
coat hat river, doctor nurse surgeon kettle, three nine twelve yellow, rain snow hail pencil, Paris
Rome London Africa, circle square triangle milk, eye ear nose door, copper iron zinc butter, tea
coffee juice brick, whale dolphin shark desk, oak pine birch spoon, July May March Thursday
"""

WORDS = """
garden window planet guitar summer orange castle rocket pencil camera silver forest butter dragon
monkey bridge kitchen blanket library chicken diamond lantern picture teacher village airport
calendar elephant mountain notebook umbrella sandwich hospital festival
"""

SORT_GROUPS = """
pear apple fig cherry plum, tiger ape zebra lion mouse, green blue red yellow black, violin harp
drum flute organ, table chair lamp bed sofa, Oslo Rome Lima Cairo Paris, oak maple birch pine elm,
soup bread rice cake milk, Ben Anna Tom Zoe Lucy, nail saw drill axe hammer, copper gold iron zinc
tin, north east south west, rain snow wind hail fog, eye arm knee toe hand
"""

UNITS = (  # unit, smaller unit, how many of them, numbers that may be asked about
    ("kilometer", "meter", 1000, (2, 3, 5, 7, 12)),
    ("meter", "centimeter", 100, (2, 4, 6, 9, 15)),
    ("centimeter", "millimeter", 10, (3, 5, 8, 14)),
    ("kilogram", "gram", 1000, (2, 4, 6, 9)),
    ("liter", "milliliter", 1000, (2, 3, 5, 8)),
    ("hour", "minute", 60, (2, 3, 4, 5)),
    ("minute", "second", 60, (2, 3, 5, 10)),
    ("day", "hour", 24, (2, 3, 4, 10)),
    ("week", "day", 7, (2, 3, 4, 5, 6, 8)),
    ("year", "month", 12, (2, 3, 4, 5)),
    ("foot", "inch", 12, (2, 3, 5, 6)),
    ("yard", "foot", 3, (2, 4, 7, 10)),
    ("dollar", "cent", 100, (2, 3, 7, 9)),
    ("dozen", "piece", 12, (2, 3, 4)),
    ("century", "year", 100, (2, 3, 5)),
)

# A subject and what it does: third person, plain form, past, past participle, the rest
SUBJECTS = """
she, he, Anna, my sister, the teacher, our neighbor, Tom, the doctor, his brother, Maria, the
farmer, the young man, her uncle, Ben
"""
ACTIONS = """
plays:play:played:played:the piano, reads:read:read:read:the newspaper,
writes:write:wrote:written:a long letter, drinks:drink:drank:drunk:a cup of tea,
opens:open:opened:opened:the window, paints:paint:painted:painted:the fence,
cleans:clean:cleaned:cleaned:the kitchen, buys:buy:bought:bought:fresh bread,
sells:sell:sold:sold:the old car, drives:drive:drove:driven:a small truck,
finds:find:found:found:the key, breaks:break:broke:broken:the plate, makes:make:made:made:a
sandwich, takes:take:took:taken:the picture, carries:carry:carried:carried:the suitcase,
brings:bring:brought:brought:the map, repairs:repair:repaired:repaired:the bicycle,
washes:wash:washed:washed:the shirt, builds:build:built:built:a wooden boat,
chooses:choose:chose:chosen:the blue chair, sings:sing:sang:sung:an old song,
draws:draw:drew:drawn:a horse, waters:water:watered:watered:the garden,
closes:close:closed:closed:the gate, feeds:feed:fed:fed:the cat, bakes:bake:baked:baked:a cake,
teaches:teach:taught:taught:the class, sends:send:sent:sent:the parcel
"""
SENTENCES = (  # phrasings, the sentence that is given, the one that is wanted
    (
        "Turn the statement into a question.; Change this sentence into a question.;"
        "Make a yes-no question from the sentence.",
        "{S} {third} {rest}.",
        "Does {s} {plain} {rest}?",
    ),
    (
        "Make the sentence negative.; Rewrite the sentence in the negative.;"
        "Change the sentence so that it says the opposite, with 'not'.",
        "{S} {third} {rest}.",
        "{S} does not {plain} {rest}.",
    ),
    (
        "Rewrite the sentence in the past tense.; Put the sentence into the simple past.;"
        "Change the tense from present to past.",
        "{S} {third} {rest}.",
        "{S} {past} {rest}.",
    ),
    (
        "Rewrite the sentence in the future tense.; Put the sentence into the future with 'will'.;"
        "Say that this is going to happen later; use 'will'.",
        "{S} {third} {rest}.",
        "{S} will {plain} {rest}.",
    ),
    (
        "Rewrite the sentence in the passive voice.; Change the sentence from active to passive.;"
        "Turn this active sentence into a passive one.",
        "{N} {past} {rest}.",
        "{Rest} was {participle} by {n}.",
    ),
    (
        "Rewrite the sentence in the active voice.; Change the sentence from passive to active.;"
        "Turn this passive sentence into an active one.",
        "{Rest} was {participle} by {n}.",
        "{N} {past} {rest}.",
    ),
)
PER_SENTENCE_TASK = 24


def main() -> None:
    rng = random.Random(123)
    entries = [entry for text in HAND_WRITTEN for entry in read_hand_written(text)]
    entries += idioms(rng)
    made = [entry for task in WORD_TASKS for entry in word_task(task, rng)]
    for maker in (labels, odd_ones, letters, sorting, units, arithmetic, numbers, sentences):
        made += maker(rng)
    made = list({(entry["instruction"], entry["input"]): entry for entry in made}.values())
    rng.shuffle(made)
    entries += made[: NUM_ENTRIES - len(entries)]
    rng.shuffle(entries)
    with atomic_write(TARGET) as temporary:
        temporary.write_text(
            json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
        )
    checkable = sum("check" in entry for entry in entries)
    print(f"{len(entries)} of {len(made)} made, {checkable} with a check: {TARGET.name}")


def make_entry(instruction, input_text, output, match=None, any_of=()) -> dict:
    entry = {"instruction": instruction, "input": input_text, "output": output}
    # Who repeats the question must not pass for having said a word of the answer
    if match == "contains" and any(is_in(text, instruction, input_text) for text in any_of):
        match = "exact"
    if match:
        texts = [*any_of, output] if match == "exact" else any_of
        different = {text.lower(): text for text in reversed(texts)}
        entry["check"] = {"match": match, "any_of": list(different.values())[::-1]}
    return entry


def is_in(phrase: str, *texts: str) -> bool:
    return any(re.search(rf"(?i)(?<!\w){re.escape(phrase)}(?!\w)", text) for text in texts)


def split(text: str, separator: str = ",") -> list[str]:
    """The parts between separators, without spaces around them and line breaks in them."""
    return [" ".join(part.split()) for part in text.split(separator) if part.strip()]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def read_hand_written(text: str) -> list[dict]:
    entries = []
    for line in text.strip().replace("\n    ", " ").splitlines():
        line, _, answers = line.partition("~")
        *question, output = (part.strip() for part in line.split(" | "))
        instruction, input_text = (*question, "")[:2]
        output = "\n".join(part.strip() for part in output.split("<br>"))
        check = ("contains", split(answers, ";")) if answers else ()
        entries.append(make_entry(instruction, input_text, output, *check))
    return entries


def idioms(rng: random.Random) -> list[dict]:
    phrasings = ("What does the idiom '{}' mean?", "Explain the idiom '{}'.", "Explain the idiom.")
    entries = []
    for line in IDIOMS.strip().splitlines():
        line, _, answers = line.partition("~")
        idiom, meaning = split(line, "|")
        phrasing = rng.choice(phrasings)
        instruction, output = phrasing.format(idiom), f"'{capital(idiom)}' means {meaning}."
        input_text = "" if "{}" in phrasing else idiom
        check = ("contains", split(answers, ";")) if answers else ()
        entries.append(make_entry(instruction, input_text, output, *check))
    return entries


def word_task(task: Task, rng: random.Random) -> list[dict]:
    phrasings = task.phrasings.splitlines()
    entries = []
    for number, row in enumerate(split(task.table)):
        fields = [field.split("/") for field in row.split(":")]
        if "_" in row:
            fields = [[re.sub("_([a-z]*)_([a-z]*)_", group, row)] for group in (r"\1", r"\2")]
        names = dict(zip(task.fields.split(), (field[0] for field in fields), strict=True))
        names |= {name.upper(): capital(value) for name, value in names.items()}
        # Each phrasing about equally often, in random order
        if number % len(phrasings) == 0:
            rng.shuffle(phrasings)
        parts = phrasings[number % len(phrasings)].split("|")
        texts = [part.strip().format(**names) for part in parts]
        entries.append(make_entry(*texts, task.match, fields[1]))
    return entries


def labels(rng: random.Random) -> list[dict]:
    entries = []
    for question, sentence, table in LABELS:
        found = re.split(r"\b(\w+): ", " ".join(table.split()))[1:]
        for label, items in zip(found[::2], found[1::2], strict=True):
            article = "an" if label[0] in "aeiou" else "a"
            whole = sentence.format(article=article, label=label)
            for item in split(items, ";" if ";" in items else ","):
                output = rng.choice((capital(label), whole))
                entries.append(make_entry(question, item, output, "exact", [label, whole]))
    return entries


def odd_ones(rng: random.Random) -> list[dict]:
    questions = (
        "Which word does not belong with the others?",
        "Find the odd one out.",
        "One of these words does not fit. Which one?",
    )
    entries = []
    for row in split(ODD_ONE_OUT):
        words = row.split()
        odd = words[-1]
        rng.shuffle(words)
        output = rng.choice((capital(odd), f"The word '{odd}' does not belong with the others."))
        any_of = [odd, f"The word '{odd}' does not belong with the others."]
        entries.append(make_entry(rng.choice(questions), ", ".join(words), output, "exact", any_of))
    return entries


def letters(rng: random.Random) -> list[dict]:
    entries = []
    for word in WORDS.split():
        letter = rng.choice(sorted(word, key=word.count)[len(word) // 2 :])  # rather a frequent one
        times, vowels = word.count(letter), sum(word.count(vowel) for vowel in "aeiou")
        last, back, spelled = word[-1], word[::-1], "-".join(word)
        how_often = "once" if times == 1 else "twice" if times == 2 else f"{in_words(times)} times"
        how_many = ((f"How many letters does '{word}' have?", ""), ("Count the letters.", word))
        tasks = [
            (*rng.choice(how_many), count(len(word), "letter")),
            (f"How many vowels are in '{word}'?", "", count(vowels, "vowel")),
            ("How often does the letter occur in the word?", f"{letter}, {word}", how_often),
            (f"What is the first letter of '{word}'?", "", word[0]),
            ("Name the last letter of the word.", word, last),
            ("Write the word backward.", word, back),
            ("Spell the word with hyphens between the letters.", word, spelled),
        ]
        for question, input_text, answer in rng.sample(tasks, 2):
            number = re.match(r"(\w+) (letter|vowel)s?$", answer)
            if number:
                digits = len(word) if number[2] == "letter" else vowels
                output = f"The word '{word}' has {answer}."
                entry = make_entry(
                    question, input_text, output, "contains", [number[1], str(digits)]
                )
            else:
                entry = make_entry(question, input_text, answer, "exact")
            entries.append(entry)
    return entries


def sorting(rng: random.Random) -> list[dict]:
    entries = []
    for row in split(SORT_GROUPS):
        words = row.split()
        rng.shuffle(words)
        question = rng.choice(
            ("Sort the words alphabetically.", "Put these words into alphabetical order.")
        )
        answer = ", ".join(sorted(words, key=str.lower))
        entries.append(make_entry(question, ", ".join(words), answer, "exact"))
    for _ in range(14):
        values = rng.sample(range(1, 100), rng.choice((3, 4, 5)))
        down = rng.random() < 0.4
        question = f"Sort the numbers from {'large to small' if down else 'small to large'}."
        answer = ", ".join(str(value) for value in sorted(values, reverse=down))
        entries.append(make_entry(question, ", ".join(map(str, values)), answer, "exact"))
    return entries


def units(rng: random.Random) -> list[dict]:
    entries = []
    for large, small, factor, amounts in UNITS:
        large, small = plural(large), plural(small)
        for amount in amounts:
            result = amount * factor
            question, input_text = rng.choice(
                (
                    (f"Convert {amount} {large} to {small}.", ""),
                    (f"How many {small} are {amount} {large}?", ""),
                    (f"Convert to {small}.", f"{amount} {large}"),
                )
            )
            answers = [str(result), f"{result:,}", in_words(result)]
            output = f"{amount} {large} are {result:,} {small}."
            entries.append(make_entry(question, input_text, output, "contains", answers))
    return entries


def arithmetic(rng: random.Random) -> list[dict]:
    stories = (
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?|+",
        "There are {c} {things} in a box, and {name} takes {b} out. How many are left?|-",
        "{name} buys {b} bags with {a} {things} each. How many {things} is that?|*",
    )
    entries = []
    pairs = [(a, b) for a in range(2, 13) for b in range(2, 10)]
    for number, (a, b) in enumerate(rng.sample(pairs, 72)):
        sums = {"+": (a, b, a + b), "-": (a + b, b, a), "*": (a, b, a * b), "/": (a * b, b, a)}
        sign = rng.choice("+-*/")
        if number % 3 == 0:
            story, sign = rng.choice(stories).split("|")
            names = {"name": rng.choice(("Lena", "Omar", "Mia", "Jon")), "a": a, "b": b, "c": a + b}
            question = story.format(things=rng.choice(("apples", "stamps", "shells")), **names)
            result = sums[sign][2]
            output = rng.choice((f"The answer is {result}.", str(result)))
        else:
            left, right, result = sums[sign]
            word = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
            left, right = in_words(left), in_words(right)
            question = f"{rng.choice(('What is', 'Calculate'))} {left} {word} {right}"
            question += "?" if question.startswith("What") else "."
            output = capital(f"{left} {word} {right} is {in_words(result)}.")
        entries.append(
            make_entry(question, "", output, "contains", [str(result), in_words(result)])
        )
    return entries


def numbers(rng: random.Random) -> list[dict]:
    entries = []
    for value in rng.sample(range(1, 100), 24):
        kind = "odd" if value % 2 else "even"
        whole = f"{value} is {kind}."
        entries.append(make_entry(f"Is {value} even or odd?", "", whole, "exact", [kind, whole]))
    for value in rng.sample(range(3, 60), 16):
        letters = roman(value)
        question = rng.choice(("Write the number in Roman numerals.", "Convert to Roman numerals."))
        entries.append(make_entry(question, str(value), letters, "exact"))
    for _ in range(14):
        a, b = rng.sample(range(10, 1000), 2)
        word = rng.choice(("larger", "smaller"))
        answer = max(a, b) if word == "larger" else min(a, b)
        question = f"Which number is {word}, {a} or {b}?"
        output = f"{answer} is {word}."
        entries.append(make_entry(question, "", output, "exact", [str(answer), output]))
    for _ in range(14):
        start, step = rng.randint(1, 30), rng.randint(2, 10)
        shown = ", ".join(str(start + step * i) for i in range(4))
        answer = str(start + 4 * step)
        output = f"The next number is {answer}."
        entries.append(make_entry("Continue the sequence.", shown, output, "contains", [answer]))
    for value in rng.sample(range(13, 100), 14):
        answers = [in_words(value)]
        entries.append(make_entry("Write the number in words.", str(value), *answers, "exact"))
    return entries


def sentences(rng: random.Random) -> list[dict]:
    subjects, actions = split(SUBJECTS), split(ACTIONS)
    pairs = [(subject, action) for subject in subjects for action in actions]
    rng.shuffle(pairs)
    entries = []
    for phrasings, given, wanted in SENTENCES:
        by_name = "{n}" in given + wanted  # "by she" would be wrong
        usable = [pair for pair in pairs if not (by_name and pair[0] in ("she", "he"))]
        for subject, action in usable[:PER_SENTENCE_TASK]:
            pairs.remove((subject, action))
            third, plain, past, participle, rest = action.split(":")
            words = {"third": third, "plain": plain, "past": past, "participle": participle}
            words |= {"s": subject, "S": capital(subject), "n": subject, "N": capital(subject)}
            words |= {"rest": rest, "Rest": capital(rest)}
            answer = wanted.format(**words)
            short = answer.replace("does not", "doesn't")
            question = rng.choice(split(phrasings, ";"))
            entries.append(
                make_entry(question, given.format(**words), answer, "exact", [answer, short])
            )
    return entries


SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A whole number below a million in English words."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return TENS[ten - 2] + (f"-{SMALL[one]}" if one else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    many, rest = divmod(number, unit)
    return f"{in_words(many)} {name}" + (f" {in_words(rest)}" if rest else "")


def count(number: int, noun: str) -> str:
    return f"{in_words(number)} {noun}{'' if number == 1 else 's'}"


def plural(unit: str) -> str:
    irregular = {"foot": "feet", "inch": "inches", "century": "centuries", "dozen": "dozen"}
    return irregular.get(unit, unit + "s")


def roman(number: int) -> str:
    text = ""
    for value, letters in (
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ):
        text += letters * (number // value)
        number %= value
    return text


if __name__ == "__main__":
    main()
