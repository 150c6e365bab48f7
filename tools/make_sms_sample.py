"""Make the synthetic messages that stand in for the SMS Spam Collection without a network.

    python tools/make_sms_sample.py     # rewrites llms_from_scratch/data/samples/...zip

The archive has the collection's format: a file ``SMSSpamCollection`` with label, tab and text.
``templates.txt`` names the template of each line, so that a split can keep near copies together.
All messages, names and numbers are invented. The same code gives the same file, byte for byte.
"""

import random
import re
import zipfile

from llms_from_scratch.data import SAMPLES
from llms_from_scratch.data.files import atomic_write

TARGET = SAMPLES / "sms-spam-synthetic.zip"
NUM_HAM, NUM_SPAM = 1400, 600

SLOTS = {
    "name": "Ana Ben Chloe Dev Ella Femi Gita Hugo Ines Jon Kim Lena Mo Nia Omar Priya Ravi Sue",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday|tomorrow|tonight|next week",
    "time": "6|half 7|8.30|noon|5 o clock|ten past 9|3 pm|7ish|11",
    "place": "the station|the library|Joe's cafe|the gym|my place|the market|campus|the pool|work",
    "food": "pizza|noodles|a curry|some soup|pancakes|salad|fish and chips|leftovers|dumplings",
    "item": "milk|bread|batteries|an umbrella|the charger|cat food|tickets|a birthday card|eggs",
    "relative": "mum|dad|my sister|grandma|your brother|uncle {name}|the kids|auntie",
    "feeling": "tired|happy|a bit sad|hungry|bored|so excited|sleepy|fine|stressed|much better",
    "film": "that new film|the match|the cooking show|the documentary|the concert|the last episode",
    "subject": "maths|the essay|history|the lab report|the slides|chemistry|the budget|the form",
    "greet": "Hi|Hey|Hello|Yo|Morning|Oi|Hiya|{name}",
    "bye": "xx|see you|love you|:)|bye|take care|cheers|thanks|later||||",
    "vehicle": "bus|train|car|bike|taxi|tram",
    "weather": "rain|snow|wind|sunshine|fog|this heat",
    "minutes": "5|10|15|20|25|40|90",
    "prize": "a holiday for two|a new phone|a tablet|a games console|a weekend in Paris|tickets",
    "shop": "FoneWorld|MegaMart|ShopNow|TopDeals|CityStore|QuickBuy|DealHub|BargainBox",
    "bank": "First Bank|your bank|NetBank|CityBank|Union Savings|PayQuick",
    "sum": "£100|£250|£500|£1000|£2000|$750|$1500|5000 pounds|€900",
    "short": "80{d}{d}|8{d}{d}{d}{d}|6{d}{d}{d}{d}|87{d}{d}{d}",
    # Numbers that the British regulator keeps free for fiction
    "phone": "0909 879 0{d}{d}{d}|08081570{d}{d}{d}|07700900{d}{d}{d}",
    "word": "WIN|YES|GO|PLAY|CLAIM|STAR|CASH|HOT|LUCKY|MUSIC",
    "code": "{L}{L}{d}{d}{d}|{d}{d}{d}{L}{d}|REF{d}{d}{d}{d}|{L}{d}{L}{d}{d}",
    "site": "www.{shop}.example|http://{shop}.example/{code}|{shop}.example/win|m.{shop}.example",
    "price": "£1.50/msg|150p/msg|£3 per week|10p/min|std rate|£1.50 per min|25p each",
    "legal": "T&Cs apply|18+|Reply STOP to end|txt STOP to opt out|16+ only|Box {d}{d}{d}||",
    "urgent": "URGENT!|ATTENTION|FINAL NOTICE:|Important:|Last chance!|2nd attempt:|WINNER!!|",
    "d": "0|1|2|3|4|5|6|7|8|9",
    "L": "A|B|C|D|E|F|G|H|K|M|N|P|R|T|W|X",
}

HAM = """
{greet}, are you coming to {place} {day}? {bye}
I'm on the {vehicle}, there in {minutes} minutes {bye}
Can you get {item} on the way home? We have none left {bye}
Sorry I missed your call, I was at {place} with {relative}. Call you at {time}
Happy birthday {name}! Have a lovely day {bye}
What are you doing {day}? {name} wants to watch {film}
Ok see you at {time} then
Did you finish {subject}? I still have half of it to do...
{relative} says hello and asks when you come round for {food}
I am so {feeling} today, going to bed early {bye}
Running late, start without me, will be there at {time}
lol no way! What did {name} say to that
Where did you leave {item}? I can't find it anywhere
Just landed, the flight was fine but the {weather} is awful here. Speak later
Made {food} for dinner, there's plenty if you want some
Thanks for yesterday, it was really nice to see you and {relative}
Is {name} with you? Not answering the phone
The meeting with {name} moved to {time} on {day}, same room
Yeah I think so. Will ask {relative} and let you know
Haha you are mad. Anyway, {film} starts at {time}
Don't forget the dentist {day} at {time} {bye}
Can't talk now, I'm in a lecture. Text me
I think I left my jacket at {place}, could you have a look?
Good luck with {subject} today!! You'll be great {bye}
No worries, we can do it {day} instead
{greet}, do you still have the book I lent you? I need it for {subject}
We're all going to {place} at {time}, come along if you're not too {feeling}
Just woke up. What did I miss last night?
Could you pick up {relative} from {place} at {time}? My {vehicle} broke down
How was {film}? I fell asleep before the end
I'll pay you back {day}, promise. Thanks for getting {item}
Not sure yet, depends on the {weather}
Please tell {name} I'll be {minutes} minutes late, stuck in traffic
Miss you lots, can't wait till {day} {bye}
Aww that's sweet. {relative} will love it
Are we still on for {food} {day}? I could do {time}
Left the keys under the mat. Feed the cat please {bye}
{name} has got a cold so we're staying in and eating {food}
I have {subject} all morning, free after {time}
The {vehicle} is packed again. I'm {feeling}
What's the wifi password at {place}?
Have you seen the {weather} outside? I'm not going anywhere
Great, I'll bring {item}. Need anything else?
Hmm ok. I'm a little {feeling} to be honest, can we talk later
Send me the notes from {day} when you get a chance
So proud of you for passing {subject}!
Just checking you got home all right {bye}
Did {relative} call you about {day}? I said we'd bring {food}
Dunno, ask {name}, they went last week
Shall I book for four or five? {name} hasn't said
My phone is dying, meet you outside {place} at {time}
I got the job!!! Start on {day}
That's a pity. Maybe we go to {film} next time then
Your parcel came, it's with the neighbours
Doctor says it's nothing, just rest for a few days. I feel {feeling}
We need to leave by {time} or we'll miss the {vehicle}
You'll never guess who I met at {place}. {name}!
Is it ok if {name} stays with us {day}?
I'm in town buying {item}, want anything
Wow, three hours on {subject} and nothing works
Sleep well, dream of {food} {bye}
Let's not argue about {item}, it's silly. Sorry
Which platform? The {vehicle} goes in {minutes} min
The plumber comes {day} between {time} and lunch, can you be in?
Ha, {relative} just won twenty pounds at bingo and won't stop talking
I sent the money to your account this morning, tell me when it's there
Are you free to help with {subject}? I'll make {food}
Wait for me by the entrance, wearing a red scarf
The teacher said to reply to the form about {day} by {time}
Got your message. Will ring {relative} when I finish at {place}
It's {name}'s leaving do {day}, we're collecting for a gift
My new number, delete the old one. {name}
Why is everyone so {feeling} about {film}? It was free at least
Turn the oven off when {food} is done please
Can I call you at {time}? Need advice about my contract
Saw a mobile for half price in town, shall I get it for {relative}?
"""

SPAM = """
{urgent} You have won {prize}! Call {phone} now to claim. Code {code}. {legal}
Text {word} to {short} for your chance to win {prize}! {price}. {legal}
FREE entry in our weekly draw for {sum}! Txt {word} to {short} {legal}
Dear customer, your {bank} account is locked. Verify your details at {site}
Congratulations! Your mobile number was awarded {sum}. Ring {phone}, ref {code}, {price}
Get the hottest ringtones! Reply {word} to {short} now. {price} {legal}
{shop}: SALE ends {day}! Up to 70% off, visit {site} {legal}
Your free ringtone is waiting to be collected. Text {word} to {short}. {legal}
You are a winner! As a valued customer you get {sum} cash. To claim call {phone}
Need cash fast? Loans up to {sum}, no credit check. Apply at {site}
{urgent} we tried to contact you about {prize}. Call {phone} from a landline. {price}
Had an accident? You could be owed {sum}. Reply YES or call {phone} {legal}
Win {prize} with {shop}! Answer this: what is the capital of France? Send A or B to {short}
Upgrade to a new camera phone FREE with {shop}. Call {phone} today {legal}
Your parcel {code} could not be delivered. Pay the fee at {site} to release it
{shop} voucher worth {sum} reserved for you. Claim before {day} at {site}
Meet singles in your area tonight! Text {word} to {short}, {price} {legal}
Half price line rental for 12 months! Call {shop} on {phone} {legal}
You have 1 new voicemail. Please call {phone}. {price}
Unlimited texts, no contract! Order now at {site} or reply {word}
Tax refund: you are due {sum}. Submit the form at {site} within 24 hours
{bank}: a payment of {sum} was requested. If this was not you, call {phone} at once
Lose 10 kg in a week with our pills! Order today {site}. {legal}
Play the new quiz! 3 questions, win {sum}. Text {word} to {short}. Cost {price}
Someone has a crush on you! Find out who, call {phone}. {price} {legal}
PRIVATE! Your account statement shows {minutes} unredeemed points. Call {phone}, code {code}
Your number was picked from 100,000 for {prize}. Claim code {code}, text {word} to {short}
Last day to save! {shop} gives you 2 for 1 on everything. Show code {code}. {legal}
Earn {sum} a week from home, no experience needed. Info: {site}
Your subscription to {shop} renews for {sum}. To cancel call {phone} now
GUARANTEED {sum} cash or {prize}! Collect now: {phone}. {price} {legal}
Horoscope of the day by text! Send your star sign and {word} to {short}, {price}
Hot new games for your mobile: 5 downloads free! {site} {legal}
You qualify for {sum} debt relief. Reply {word}. {legal}
Bonus: double minutes and {sum} credit when you switch to {shop}. Tel {phone}
Double your crypto in 24h, guaranteed. Join now {site}
Free msg: your mobile bill can be cut by half. Call {phone} free. {legal}
Hi, it's {name}, this is my new number. Lost my phone, can you send {sum} today? {site}
Reminder from {shop}: your gift is unclaimed. Text {word} {code} to {short} {price}
Casino {shop}: {sum} welcome bonus, no deposit. Play at {site} {legal}
You have been specially selected for {prize}. Press 0 or call {phone} to speak to our agent
{urgent} mobile {phone} was awarded a {sum} bonus caller prize. Call us, valid 12 hrs only
New: live football goals to your phone! Send {word} to {short}. {price}, {legal}
Insurance too dear? Compare at {site} and save {sum} this year
Final call for {prize}: only {minutes} left! Txt {word} to {short} {legal}
Today's offer! Claim {sum} worth of discount vouchers. Text {word} to {short}. {legal}
"""

ABBREVIATIONS = {
    "you": "u", "are": "r", "to": "2", "for": "4", "please": "pls", "see": "c", "your": "ur",
    "tomorrow": "tmrw", "because": "cos", "thanks": "thx", "and": "n", "tonight": "2nite",
    "text": "txt", "what": "wat", "before": "b4", "the": "d", "going to": "gonna",
}  # fmt: skip


def main() -> None:
    rng = random.Random(123)
    rows = [row for label, texts, number in (("ham", HAM, NUM_HAM), ("spam", SPAM, NUM_SPAM))
            for row in make_messages(label, texts.strip().splitlines(), number, rng)]  # fmt: skip
    rng.shuffle(rows)
    messages = "".join(f"{label}\t{text}\n" for label, _, text in rows)
    templates = "".join(f"{template}\n" for _, template, _ in rows)
    with atomic_write(TARGET) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in (("SMSSpamCollection", messages), ("templates.txt", templates)):
            info = zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content.encode("utf-8"))
    print(f"{len(rows)} messages, {len(set(templates.split()))} templates: {TARGET.name}")


def make_messages(label: str, texts: list[str], number: int, rng: random.Random):
    """As many different messages as wanted, of each template about the same number."""
    seen = set()
    rows = []
    attempts = 0
    while len(rows) < number:
        index = attempts % len(texts)
        attempts += 1
        text = roughen(fill(texts[index], rng), label, rng)
        if text not in seen:
            seen.add(text)
            rows.append((label, f"{label}-{index:02}", text))
    return rows


def fill(text: str, rng: random.Random) -> str:
    """Replace each slot by one of its values, in which there may be slots again."""
    while match := re.search(r"\{(\w+)\}", text):
        values = SLOTS[match[1]]
        value = rng.choice(values.split("|") if "|" in values else values.split())
        text = text[: match.start()] + value + text[match.end() :]
    return " ".join(text.split())


def roughen(text: str, label: str, rng: random.Random) -> str:
    """What thumbs do to a text: abbreviations, lost capitals and full stops, typing errors."""
    haste = rng.random() * (0.6 if label == "ham" else 0.25)
    words = [
        ABBREVIATIONS.get(word.lower(), word) if rng.random() < haste else word
        for word in text.split()
    ]
    if rng.random() < haste:
        words = [word.lower() for word in words]
    if label == "spam" and rng.random() < 0.2:
        words = [word.upper() if word.isalpha() else word for word in words]
    if rng.random() < haste:
        i = rng.randrange(len(words))
        if words[i].isalpha() and len(words[i]) > 3:  # two letters change places
            k = rng.randrange(len(words[i]) - 1)
            words[i] = words[i][:k] + words[i][k + 1] + words[i][k] + words[i][k + 2 :]
    text = " ".join(words)
    if rng.random() < haste:
        text = re.sub(r"[.!?]+$|'", "", text)
    if rng.random() < 0.1:
        text += rng.choice(["...", "!", "!!", " ok"])
    return text


if __name__ == "__main__":
    main()
